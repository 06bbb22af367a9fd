// The listeners of a checking build, in the order in which they hear of things.
#include "checkers.h"

#if defined(METALSIM_CHECK)

namespace metalsim {
namespace {

// Bounds come first: the others look at memory that is the kernel's.
constexpr Listener listeners[] = {
    bounds_listener, counting_listener, profile_listener, races_listener, uninitialized_listener,
};

template <class Call>
void for_each_listener(const Threadgroup& group, Call call) {
  for (const Listener& listener : listeners)
    if (listener.check == 0 || listener.check & group.launch->checks) call(listener);
}

}  // namespace

bool notify_begin_launch(Threadgroup& group) {
  bool ready = open_regions(group);
  for_each_listener(group, [&](const Listener& listener) {
    if (ready && listener.begin_launch != nullptr) ready = listener.begin_launch(group);
  });
  return ready;
}

void notify_begin(Threadgroup& group) {
  for_each_listener(group, [&](const Listener& listener) {
    if (listener.begin != nullptr) listener.begin(group);
  });
}

bool notify_access(const Access& access) {
  Fiber* fiber = running_fiber;
  Region region;
  if (fiber == nullptr || !find_region(*fiber, access, region)) return true;
  const uint32_t checks = fiber->threadgroup->launch->checks;
  for (const Listener& listener : listeners)
    if (listener.access != nullptr && (listener.check == 0 || listener.check & checks))
      if (!listener.access(*fiber, access, region)) return false;
  return true;
}

void notify_synchronize(Fiber* fiber, Scope scope, uint32_t flags) {
  for_each_listener(*fiber->threadgroup, [&](const Listener& listener) {
    if (listener.synchronize != nullptr) listener.synchronize(*fiber, scope, flags);
  });
}

void notify_end(Threadgroup& group) {
  for_each_listener(group, [&](const Listener& listener) {
    if (listener.end != nullptr) listener.end(group);
  });
}

void notify_end_launch(Threadgroup& group) {
  for_each_listener(group, [&](const Listener& listener) {
    if (listener.end_launch != nullptr) listener.end_launch();
  });
  close_regions();
}

}  // namespace metalsim

#endif
