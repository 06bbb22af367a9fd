#include "fences.h"

#if defined(METALSIM_CHECK)

#include <stdlib.h>
#include <string.h>

namespace metalsim {

// Words never change, so that they can be shared: a thread hears more by a new one that leads to
// the old.
struct Word {
  const Word* first;   // passed on for the memory that `flags` names
  const Word* second;  // passed on always
  Past past;           // of the thread that spoke, at its fence
  uint32_t flags;
  bool is_release;           // it tells of `past` too
  bool is_of_group;          // within one threadgroup alone
  mutable uint64_t visited;  // by which search
  mutable const Word* next;  // to be visited
};

namespace {

enum MemoryOrder : uint32_t { relaxed = 0, acquire = 2, release = 3 };
enum ThreadScope : uint32_t { of_threadgroup = 2, of_device = 3 };

struct Hearer {
  const Word* released;  // what its next atomic writes carry
  const Word* read;      // by its atomic operations
  const Word* heard;     // of that, in front of an acquire fence
};

struct Block {
  Block* earlier;
  uint32_t used;
  Word words[255];
};

struct Fences {
  bool are_used;
  uint64_t searches;
  Block* blocks;
  Hearer hearers[max_threads];
};
__thread Fences* fences;

const Word* keep(Threadgroup& group, const Word& word) {
  Block* block = fences->blocks;
  if (block == nullptr || block->used == 255) {
    block = static_cast<Block*>(malloc(sizeof(Block)));
    if (block == nullptr) fail(group, "launch", "no memory for the fences of this launch");
    block->earlier = fences->blocks;
    block->used = 0;
    fences->blocks = block;
  }
  block->words[block->used] = word;
  return &block->words[block->used++];
}

const Word* join(Threadgroup& group, const Word* a, const Word* b, uint32_t flags) {
  if (a == nullptr || flags == 0 || a == b) return b;
  if (b == nullptr && flags == 3) return a;
  return keep(group, {a, b, {}, flags, false, false, 0, nullptr});
}

}  // namespace

bool open_fences() {
  fences = static_cast<Fences*>(calloc(1, sizeof(Fences)));
  return fences != nullptr;
}

void close_fences() {
  if (fences == nullptr) return;
  for (Block* block = fences->blocks; block != nullptr;) {
    Block* earlier = block->earlier;
    free(block);
    block = earlier;
  }
  free(fences);
  fences = nullptr;
}

void forget_words() {
  if (fences->are_used) memset(fences->hearers, 0, sizeof fences->hearers);
}

bool are_words_spoken() { return fences->are_used; }

void pass_fence(Threadgroup& group, const Past& past, uint32_t flags, uint32_t order,
                uint32_t scope) {
  if (order == relaxed || scope < of_threadgroup) return;
  fences->are_used = true;
  Hearer& hearer = fences->hearers[past.thread];
  const bool is_of_group = scope < of_device;
  if (order != release && hearer.read != nullptr)
    hearer.heard =
        keep(group, {hearer.read, hearer.heard, past, flags, false, is_of_group, 0, nullptr});
  if (order != acquire)
    hearer.released =
        keep(group, {hearer.heard, nullptr, past, flags, true, is_of_group, 0, nullptr});
}

const Word* pass_word(Threadgroup& group, uint32_t thread, AccessKind kind, const Word* word) {
  Hearer& hearer = fences->hearers[thread];
  if (kind != AccessKind::atomic_store) hearer.read = join(group, word, hearer.read, 3);
  if (kind == AccessKind::atomic_load) return word;
  // What an update leaves behind still carries what it found.
  const Word* found = kind == AccessKind::atomic ? word : nullptr;
  if (hearer.released == nullptr) return found;
  Word carried = *hearer.released;
  carried.second = found;
  return keep(group, carried);
}

void share_words(Threadgroup& group, uint32_t first, uint32_t last, uint32_t flags) {
  const Word *read = nullptr, *heard = nullptr;
  for (uint32_t thread = first; thread < last; ++thread) {
    if (fences->hearers[thread].read != read)
      read = join(group, fences->hearers[thread].read, read, 3);
    if (fences->hearers[thread].heard != heard)
      heard = join(group, fences->hearers[thread].heard, heard, 3);
  }
  for (uint32_t thread = first; thread < last; ++thread) {
    Hearer& hearer = fences->hearers[thread];
    hearer.read = read;
    hearer.heard = flags == 3 ? heard : join(group, heard, hearer.heard, flags);
  }
}

bool has_heard(uint32_t thread, uint64_t group_start, uint64_t access_time, uint32_t access_thread,
               Ordered memory) {
  const uint64_t search = ++fences->searches;
  const uint32_t flag = memory == device_memory ? 1 : 2;
  const Word* pending = nullptr;
  const auto visit = [&pending, search](const Word* word) {
    if (word == nullptr || word->visited == search) return;
    word->visited = search;
    word->next = pending;
    pending = word;
  };
  visit(fences->hearers[thread].heard);
  while (pending != nullptr) {
    const Word& word = *pending;
    pending = word.next;
    visit(word.second);
    if (!(word.flags & flag)) continue;
    // Within a threadgroup: what the release tells must be of the group that asks, and an acquire
    // hears nothing of groups before its own.
    if (word.is_of_group && access_time < (word.is_release ? group_start : word.past.group_start))
      continue;
    if (word.is_release && word.past.contains(access_time, access_thread, memory)) return true;
    visit(word.first);
  }
  return false;
}

}  // namespace metalsim

#endif
