// One launch: OS threads ("workers") take threadgroups from a shared counter until all are done or
// one fails.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "division.h"
#include "listener.h"

namespace metalsim {
namespace {

// Stacks follow one another at this distance. The odd part spreads their hot ends over the sets of
// the nearest cache; with a power of two all of them would share one set.
constexpr uint64_t stack_stride = 128 * 1024 + 576;

// Everything that one OS thread needs to run threadgroups; kept for the next launch.
struct Worker {
  Worker* next_idle;
  uint32_t capacity;  // threads a threadgroup
  uint64_t mapped_bytes;
  Threadgroup* group;
};

struct Launch {
  const metalsim_entry* entry;
  metalsim_launch* launch;
  uint64_t groups[3];
  uint64_t total;
  uint64_t stride;  // a random order visits threadgroup (index * stride + start) % total
  uint64_t start;
  uint64_t next;  // atomic
  bool stop;      // atomic
  void* buffers[METALSIM_BUFFERS];
  unsigned char* unbound;
  pthread_mutex_t mutex;
};

pthread_mutex_t idle_mutex = PTHREAD_MUTEX_INITIALIZER;
Worker* idle_workers = nullptr;

unsigned char* map_memory(uint64_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<unsigned char*>(memory);
}

// One mapping holds the worker, its threadgroup, fibers, simdgroups, the arena and the stacks.
Worker* make_worker(uint32_t capacity) {
  const uint64_t offset_group = 4096;
  const uint64_t offset_fibers = offset_group + (sizeof(Threadgroup) + 4095) / 4096 * 4096;
  const uint64_t offset_simdgroups = offset_fibers + capacity * sizeof(Fiber);
  const uint64_t offset_arena =
      offset_simdgroups + capacity / simdgroup_width * sizeof(Simdgroup) + 4096;
  const uint64_t offset_workspaces = (offset_arena + arena_bytes + 4095) / 4096 * 4096;
  const uint64_t offset_stacks =
      offset_workspaces + capacity / simdgroup_width * 2 * workspace_bytes;
  const uint64_t bytes = offset_stacks + capacity * stack_stride;
  unsigned char* memory = map_memory(bytes);
  if (memory == nullptr) return nullptr;
  Worker* worker = reinterpret_cast<Worker*>(memory);
  worker->capacity = capacity;
  worker->mapped_bytes = bytes;
  worker->group = reinterpret_cast<Threadgroup*>(memory + offset_group);
  Threadgroup& group = *worker->group;
  group.fibers = reinterpret_cast<Fiber*>(memory + offset_fibers);
  group.simdgroups = reinterpret_cast<Simdgroup*>(memory + offset_simdgroups);
  group.arena = memory + offset_arena;
  group.workspaces = memory + offset_workspaces;
  group.stacks = memory + offset_stacks;
  group.stack_stride = stack_stride;
  group.memory = memory;
  group.memory_bytes = bytes;
  return worker;
}

Worker* take_worker(uint32_t threads) {
  pthread_mutex_lock(&idle_mutex);
  Worker** link = &idle_workers;
  while (*link != nullptr && (*link)->capacity < threads) link = &(*link)->next_idle;
  Worker* worker = *link;
  if (worker != nullptr) *link = worker->next_idle;
  pthread_mutex_unlock(&idle_mutex);
  if (worker != nullptr) return worker;
  uint32_t capacity = simdgroup_width;
  while (capacity < threads) capacity *= 2;
  return make_worker(capacity);
}

void give_back(Worker* worker) {
  pthread_mutex_lock(&idle_mutex);
  worker->next_idle = idle_workers;
  idle_workers = worker;
  pthread_mutex_unlock(&idle_mutex);
}

void run_one(const Launch& shared, Threadgroup& group, uint64_t index) {
  const metalsim_launch& launch = *shared.launch;
  if (launch.seed != 0)
    index = static_cast<uint64_t>(
        (static_cast<unsigned __int128>(index) * shared.stride + shared.start) % shared.total);
  group.random.state = launch.seed ^ (index + 1) * 0xD1342543DE82EF95u;
  group.stickiness = group.random.below(3) * 4;
  group.position[0] = static_cast<uint32_t>(index % shared.groups[0]);
  group.position[1] = static_cast<uint32_t>(index / shared.groups[0] % shared.groups[1]);
  group.position[2] = static_cast<uint32_t>(index / shared.groups[0] / shared.groups[1]);
  for (int axis = 0; axis < 3; ++axis) {
    const uint32_t left = launch.threads[axis] - group.position[axis] * launch.group[axis];
    group.size[axis] = left < launch.group[axis] ? left : launch.group[axis];
  }
  group.thread_count = group.size[0] * group.size[1] * group.size[2];
  group.simdgroup_count = (group.thread_count + simdgroup_width - 1) / simdgroup_width;
  forget_variables(group);
  run_threadgroup(group);
}

void prepare_group(const Launch& shared, Threadgroup& group) {
  group.entry = shared.entry;
  group.launch = shared.launch;
  group.unbound = shared.unbound;
  group.randomize = shared.launch->seed != 0;
  group.error[0] = group.error_kind[0] = 0;
  memset(group.counters, 0, sizeof group.counters);
  memcpy(group.buffers, shared.buffers, sizeof group.buffers);
  for (int axis = 0; axis < 3; ++axis) {
    group.group[axis] = shared.launch->group[axis];
    group.groups[axis] = static_cast<uint32_t>(shared.groups[axis]);
    group.grid[axis] = shared.launch->threads[axis];
  }
}

void keep_results(Launch& shared, const Threadgroup& group) {
  pthread_mutex_lock(&shared.mutex);
  metalsim_launch& launch = *shared.launch;
  for (uint32_t index = 0; index < counter_count; ++index)
    launch.counters[index] += group.counters[index];
  if (group.error[0] != 0 && launch.error[0] == 0) {
    memcpy(launch.error, group.error, sizeof launch.error);
    memcpy(launch.error_kind, group.error_kind, sizeof launch.error_kind);
  }
  pthread_mutex_unlock(&shared.mutex);
}

void launch_error(Launch& shared, const char* message) {
  pthread_mutex_lock(&shared.mutex);
  snprintf(shared.launch->error, sizeof shared.launch->error, "%s", message);
  snprintf(shared.launch->error_kind, sizeof shared.launch->error_kind, "launch");
  pthread_mutex_unlock(&shared.mutex);
}

void* work(void* argument) {
  Launch& shared = *static_cast<Launch*>(argument);
  const uint32_t* size = shared.launch->group;
  Worker* worker = take_worker(size[0] * size[1] * size[2]);
  if (worker == nullptr) {
    launch_error(shared, "no memory for the threads of a threadgroup");
    return nullptr;
  }
  Threadgroup& group = *worker->group;
  prepare_group(shared, group);
  if (!notify_begin_launch(group)) {
    launch_error(shared, "no memory for the checkers");
    __atomic_store_n(&shared.stop, true, __ATOMIC_RELAXED);
  }
  while (!__atomic_load_n(&shared.stop, __ATOMIC_RELAXED)) {
    const uint64_t index = __atomic_fetch_add(&shared.next, 1, __ATOMIC_RELAXED);
    if (index >= shared.total) break;
    run_one(shared, group, index);
    if (group.error[0] != 0) __atomic_store_n(&shared.stop, true, __ATOMIC_RELAXED);
  }
  notify_end_launch(group);
  keep_results(shared, group);
  give_back(worker);
  return nullptr;
}

// The calling thread is the first worker; what cannot be started is simply not used.
void run_workers(Launch& shared) {
  // Checkers see the accesses in one order, the same in every run.
  uint64_t wanted = shared.launch->checks != 0 ? 1 : shared.launch->workers;
  if (wanted == 0) {
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    wanted = cores < 1 ? 1 : static_cast<uint64_t>(cores);
  }
  if (wanted > shared.total) wanted = shared.total;
  if (wanted > 256) wanted = 256;
  pthread_t threads[256];
  uint32_t started = 0;
  while (started + 1 < wanted && pthread_create(&threads[started], nullptr, work, &shared) == 0)
    ++started;
  work(&shared);
  for (uint32_t index = 0; index < started; ++index) pthread_join(threads[index], nullptr);
}

uint64_t greatest_common_divisor(uint64_t a, uint64_t b) {
  while (b != 0) {
    const uint64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

void choose_order(Launch& shared) {
  Random random{shared.launch->seed};
  shared.start = random.next() % shared.total;
  shared.stride = random.next() % shared.total;
  while (greatest_common_divisor(shared.stride, shared.total) != 1)
    shared.stride = (shared.stride + 1) % shared.total;
}

// Compilers may read through a reference that a function constant makes optional before the branch
// that guards it, so unbound buffers point at zeros.
void bind_buffers(Launch& shared) {
  for (uint32_t index = 0; index < METALSIM_BUFFERS; ++index) {
    shared.buffers[index] = shared.launch->buffers[index];
    if (shared.buffers[index] != nullptr || !(shared.entry->buffers >> index & 1)) continue;
    if (shared.unbound == nullptr) shared.unbound = map_memory(METALSIM_BUFFERS * unbound_bytes);
    if (shared.unbound != nullptr) shared.buffers[index] = shared.unbound + index * unbound_bytes;
  }
}

const char* refusal(const metalsim_entry& entry, const metalsim_launch& launch) {
  if (launch.abi_version != METALSIM_ABI_VERSION || entry.abi_version != METALSIM_ABI_VERSION)
    return "the kernel library was built for another version of the machine";
  uint64_t threads = 1;
  for (int axis = 0; axis < 3; ++axis) {
    if (launch.group[axis] == 0 || launch.group[axis] > max_threads)
      return "a threadgroup needs between 1 and 1024 threads";
    threads *= launch.group[axis];
  }
  return threads > max_threads ? "a threadgroup has at most 1024 threads" : nullptr;
}

}  // namespace
}  // namespace metalsim

using namespace metalsim;

int metalsim_run(const metalsim_entry* entry, metalsim_launch* launch) {
  Launch shared = {};
  shared.entry = entry;
  shared.launch = launch;
  pthread_mutex_init(&shared.mutex, nullptr);
  if (const char* reason = refusal(*entry, *launch)) {
    launch_error(shared, reason);
    return 1;
  }
  shared.total = 1;
  for (int axis = 0; axis < 3; ++axis) {
    shared.groups[axis] = (static_cast<uint64_t>(launch->threads[axis]) + launch->group[axis] - 1) /
                          launch->group[axis];
    shared.total *= shared.groups[axis];
  }
  if (shared.total == 0) return 0;
  if (launch->seed != 0) choose_order(shared);
  bind_buffers(shared);
  const DivisionScope divisions;
  run_workers(shared);
  if (shared.unbound != nullptr) munmap(shared.unbound, METALSIM_BUFFERS * unbound_bytes);
  pthread_mutex_destroy(&shared.mutex);
  return launch->error[0] != 0;
}

const char* metalsim_counter_name(uint32_t index) {
  static const char* const names[] = {
      "matrix_multiplies",
      "device_bytes_loaded",
      "device_bytes_stored",
      "constant_bytes_loaded",
      "threadgroup_bytes_loaded",
      "threadgroup_bytes_stored",
      "threadgroup_barriers",
      "simdgroup_barriers",
      "shuffles",
      "reductions",
      "votes",
      "exponentials",
      "atomics",
      "tensor_multiply_adds",
      "logarithms",
      "square_roots",
      "trigonometric",
      "device_loads",
      "device_stores",
      "device_lines_loaded",
      "device_lines_stored",
      "threadgroup_loads",
      "threadgroup_stores",
      "bank_conflicts",
  };
  static_assert(sizeof names / sizeof names[0] == counter_count);
  return index < counter_count ? names[index] : nullptr;
}
