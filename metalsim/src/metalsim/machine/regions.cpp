#include "regions.h"

#if defined(METALSIM_CHECK)

#include <dlfcn.h>
#include <stdlib.h>
#if defined(__APPLE__)
#include <mach-o/loader.h>
#else
#include <link.h>
#endif

namespace metalsim {
namespace {

// The images of the running program that hold its constants: the kernel library and the runtime.
// Each OS thread keeps its own, since launches may overlap.
struct Image {
  const unsigned char* begin;
  const unsigned char* end;
};
__thread Image program_image;
__thread Image runtime_image;

bool contains(const Image& image, const unsigned char* address) {
  return address >= image.begin && address < image.end;
}

#if defined(__APPLE__)
Image image_of(const void* address) {
  Dl_info info;
  Image image = {nullptr, nullptr};
  if (dladdr(address, &info) == 0) return image;
  const auto* header = static_cast<const mach_header_64*>(info.dli_fbase);
  image.begin = image.end = reinterpret_cast<const unsigned char*>(header);
  const auto* command = reinterpret_cast<const load_command*>(header + 1);
  uint64_t first = ~0ull, last = 0;
  for (uint32_t index = 0; index < header->ncmds; ++index) {
    if (command->cmd == LC_SEGMENT_64) {
      const auto* segment = reinterpret_cast<const segment_command_64*>(command);
      if (segment->vmaddr < first) first = segment->vmaddr;
      if (segment->vmaddr + segment->vmsize > last) last = segment->vmaddr + segment->vmsize;
    }
    command = reinterpret_cast<const load_command*>(
        reinterpret_cast<const unsigned char*>(command) + command->cmdsize);
  }
  if (last > first) image.end = image.begin + (last - first);
  return image;
}
#else
struct Search {
  const unsigned char* address;
  Image found;
};

int visit_image(dl_phdr_info* info, size_t, void* data) {
  Search& search = *static_cast<Search*>(data);
  Image image = {reinterpret_cast<const unsigned char*>(~0ull), nullptr};
  for (int index = 0; index < info->dlpi_phnum; ++index) {
    const auto& segment = info->dlpi_phdr[index];
    if (segment.p_type != PT_LOAD) continue;
    const auto* begin = reinterpret_cast<const unsigned char*>(info->dlpi_addr + segment.p_vaddr);
    if (begin < image.begin) image.begin = begin;
    if (begin + segment.p_memsz > image.end) image.end = begin + segment.p_memsz;
  }
  if (!contains(image, search.address)) return 0;
  search.found = image;
  return 1;
}

Image image_of(const void* address) {
  Search search = {static_cast<const unsigned char*>(address), {nullptr, nullptr}};
  dl_iterate_phdr(visit_image, &search);
  return search.found;
}
#endif

// What the launch bound, by address. `recent` remembers where each instruction went last, since
// most of them stay with one buffer.
struct Table {
  Region* regions;
  uint32_t count;
  Memory* memories;
  uint32_t memory_count;
  const Region* recent[256];
};
__thread Table* table;

bool holds(const Region& region, const Access& access) {
  const uint64_t offset = static_cast<uint64_t>(access.address - region.base);
  return offset < region.bytes && access.bytes <= region.bytes - offset;
}

void find_variable(const Threadgroup& group, const Access& access, Region& region) {
  region = {Space::unknown, 0, no_item, 0, nullptr, 0};
  for (uint32_t index = 0; index < group.declared_count; ++index) {
    const ThreadgroupVariable& variable = group.variables[group.declared[index]];
    const Region candidate = {Space::threadgroup, group.declared[index], no_item, 0,
                              variable.base,      variable.bytes};
    if (!holds(candidate, access)) continue;
    region = candidate;
    return;
  }
}

// Views of one tensor overlap: the buffer in which the access fits wins.
bool find_buffer(const Access& access, Region& region) {
  const uint64_t code = reinterpret_cast<uint64_t>(access.code);
  const Region*& recent = table->recent[(code ^ code >> 8) & 255];
  if (recent == nullptr || !holds(*recent, access)) {
    recent = nullptr;
    for (uint32_t index = 0; index < table->count && recent == nullptr; ++index)
      if (holds(table->regions[index], access)) recent = &table->regions[index];
    if (recent == nullptr) return false;
  }
  region = *recent;
  return true;
}

bool find_unbound(const Threadgroup& group, const Access& access, Region& region) {
  const uint64_t offset = static_cast<uint64_t>(access.address - group.unbound);
  if (group.unbound == nullptr || offset >= METALSIM_BUFFERS * unbound_bytes) return false;
  const uint32_t index = static_cast<uint32_t>(offset / unbound_bytes);
  region = {Space::unbound, index, no_item, 0, group.unbound + index * unbound_bytes,
            unbound_bytes};
  return true;
}

void list_regions(const Threadgroup& group) {
  const metalsim_launch& launch = *group.launch;
  for (uint32_t index = 0; index < METALSIM_BUFFERS; ++index) {
    if (!(group.entry->buffers >> index & 1) || launch.buffers[index] == nullptr) continue;
    const bool is_constant = group.entry->constant_buffers >> index & 1;
    table->regions[table->count++] = {is_constant ? Space::constant : Space::device,
                                      index,
                                      no_item,
                                      0,
                                      static_cast<const unsigned char*>(launch.buffers[index]),
                                      launch.buffer_bytes[index]};
  }
  for (uint32_t index = 0; index < launch.extent_count; ++index) {
    const metalsim_extent& extent = launch.extents[index];
    table->regions[table->count++] = {Space::device,
                                      extent.buffer,
                                      extent.item,
                                      0,
                                      static_cast<const unsigned char*>(extent.base),
                                      extent.bytes};
  }
}

// Joins regions that overlap, until no two pieces do.
void join_regions() {
  for (uint32_t index = 0; index < table->count; ++index) {
    Memory joined = {table->regions[index].base, table->regions[index].bytes};
    for (uint32_t other = 0; other < table->memory_count;) {
      const Memory& piece = table->memories[other];
      const unsigned char* end = piece.base + piece.bytes;
      const unsigned char* joined_end = joined.base + joined.bytes;
      if (end <= joined.base || joined_end <= piece.base) {
        ++other;
        continue;
      }
      if (piece.base < joined.base) joined.base = piece.base;
      joined.bytes = static_cast<uint64_t>((end > joined_end ? end : joined_end) - joined.base);
      table->memories[other] = table->memories[--table->memory_count];
      other = 0;
    }
    table->memories[table->memory_count++] = joined;
  }
  for (uint32_t index = 0; index < table->count; ++index) {
    Region& region = table->regions[index];
    for (uint32_t piece = 0; piece < table->memory_count; ++piece)
      if (region.base >= table->memories[piece].base &&
          region.base < table->memories[piece].base + table->memories[piece].bytes)
        region.memory = piece;
  }
}

uint64_t distance(const Region& region, const unsigned char* address) {
  if (address < region.base) return static_cast<uint64_t>(region.base - address);
  const unsigned char* end = region.base + region.bytes;
  return address < end ? 0 : static_cast<uint64_t>(address - end);
}

}  // namespace

bool find_region(const Fiber& fiber, const Access& access, Region& region) {
  const Threadgroup& group = *fiber.threadgroup;
  const uint64_t in_arena = static_cast<uint64_t>(access.address - group.arena);
  if (in_arena < arena_bytes) {
    find_variable(group, access, region);
    return true;
  }
  if (static_cast<uint64_t>(access.address - group.memory) < group.memory_bytes)
    return find_private(fiber, access, region);
  if (find_buffer(access, region)) return true;
  if (contains(program_image, access.address) || contains(runtime_image, access.address))
    return false;
  if (find_unbound(group, access, region)) return true;
  region = {Space::unknown, 0, no_item, 0, nullptr, 0};
  return true;
}

Region nearest(const Fiber& fiber, const unsigned char* address) {
  const Threadgroup& group = *fiber.threadgroup;
  Region best = {Space::unknown, 0, no_item, 0, nullptr, 0};
  const auto consider = [&best, address](const Region& candidate) {
    if (best.space == Space::unknown || distance(candidate, address) < distance(best, address))
      best = candidate;
  };
  if (static_cast<uint64_t>(address - group.arena) < arena_bytes) {
    for (uint32_t index = 0; index < group.declared_count; ++index) {
      const ThreadgroupVariable& variable = group.variables[group.declared[index]];
      consider(
          {Space::threadgroup, group.declared[index], no_item, 0, variable.base, variable.bytes});
    }
    return best;
  }
  for (uint32_t index = 0; index < table->count; ++index) consider(table->regions[index]);
  for (const PrivateArray* array = fiber.arrays; array != nullptr; array = array->outer)
    consider({Space::thread, 0, no_item, 0, array->base, array->bytes, array});
  return best;
}

Memories device_memories() { return {table->memories, table->memory_count}; }

uint64_t code_offset(const void* code) {
  const auto* address = static_cast<const unsigned char*>(code);
  return contains(program_image, address) ? static_cast<uint64_t>(address - program_image.begin)
                                          : 0;
}

bool open_regions(const Threadgroup& group) {
  program_image = image_of(reinterpret_cast<const void*>(group.entry));
  runtime_image = image_of(reinterpret_cast<const void*>(&open_regions));
  const uint64_t capacity = METALSIM_BUFFERS + group.launch->extent_count;
  table = static_cast<Table*>(calloc(1, sizeof(Table)));
  if (table == nullptr) return false;
  table->regions = static_cast<Region*>(malloc(capacity * sizeof(Region)));
  table->memories = static_cast<Memory*>(malloc(capacity * sizeof(Memory)));
  if (table->regions == nullptr || table->memories == nullptr) return false;
  list_regions(group);
  join_regions();
  return true;
}

void close_regions() {
  if (table == nullptr) return;
  free(table->regions);
  free(table->memories);
  free(table);
  table = nullptr;
}

}  // namespace metalsim

#endif
