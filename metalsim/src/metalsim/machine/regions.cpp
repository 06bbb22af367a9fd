#include "regions.h"

#if defined(METALSIM_CHECK)

#include <dlfcn.h>
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

bool find_variable(const Threadgroup& group, const Access& access, Region& region) {
  region = {Space::unknown, 0, nullptr, 0};
  for (uint32_t index = 0; index < group.declared_count; ++index) {
    const ThreadgroupVariable& variable = group.variables[group.declared[index]];
    if (access.address < variable.base ||
        access.address + access.bytes > variable.base + variable.bytes)
      continue;
    region = {Space::threadgroup, group.declared[index], variable.base, variable.bytes};
    break;
  }
  return true;
}

Region buffer_region(const Threadgroup& group, uint32_t index) {
  const metalsim_launch& launch = *group.launch;
  const auto* base = static_cast<const unsigned char*>(launch.buffers[index]);
  const bool is_constant = group.entry->constant_buffers >> index & 1;
  return {is_constant ? Space::constant : Space::device, index, base, launch.buffer_bytes[index]};
}

bool is_bound(const Threadgroup& group, uint32_t index) {
  return group.entry->buffers >> index & 1 && group.launch->buffers[index] != nullptr;
}

// Views of one tensor overlap: the buffer in which the access fits wins.
bool find_buffer(const Threadgroup& group, const Access& access, Region& region) {
  for (uint32_t index = 0; index < METALSIM_BUFFERS; ++index) {
    if (!is_bound(group, index)) continue;
    const Region candidate = buffer_region(group, index);
    if (access.address < candidate.base) continue;
    if (static_cast<uint64_t>(access.address - candidate.base) + access.bytes > candidate.bytes)
      continue;
    region = candidate;
    return true;
  }
  return false;
}

bool find_unbound(const Threadgroup& group, const Access& access, Region& region) {
  const uint64_t offset = static_cast<uint64_t>(access.address - group.unbound);
  if (group.unbound == nullptr || offset >= METALSIM_BUFFERS * unbound_bytes) return false;
  region = {Space::unbound, static_cast<uint32_t>(offset / unbound_bytes), group.unbound,
            unbound_bytes};
  return true;
}

}  // namespace

bool find_region(Threadgroup& group, const Access& access, Region& region) {
  const uint64_t in_arena = static_cast<uint64_t>(access.address - group.arena);
  if (in_arena < arena_bytes) return find_variable(group, access, region);
  if (static_cast<uint64_t>(access.address - group.memory) < group.memory_bytes) return false;
  if (find_buffer(group, access, region)) return true;
  if (contains(program_image, access.address) || contains(runtime_image, access.address))
    return false;
  if (find_unbound(group, access, region)) return true;
  region = {Space::unknown, 0, nullptr, 0};
  return true;
}

Region nearest_below(const Threadgroup& group, const unsigned char* address) {
  Region nearest = {Space::unknown, 0, nullptr, 0};
  if (static_cast<uint64_t>(address - group.arena) < arena_bytes) {
    for (uint32_t index = 0; index < group.declared_count; ++index) {
      const ThreadgroupVariable& variable = group.variables[group.declared[index]];
      if (variable.base <= address && variable.base >= nearest.base)
        nearest = {Space::threadgroup, group.declared[index], variable.base, variable.bytes};
    }
    return nearest;
  }
  for (uint32_t index = 0; index < METALSIM_BUFFERS; ++index) {
    if (!is_bound(group, index)) continue;
    const Region candidate = buffer_region(group, index);
    if (candidate.base <= address && candidate.base >= nearest.base) nearest = candidate;
  }
  return nearest;
}

void locate_program(const metalsim_entry* entry) {
  program_image = image_of(reinterpret_cast<const void*>(entry));
  runtime_image = image_of(reinterpret_cast<const void*>(&locate_program));
}

}  // namespace metalsim

#endif
