// The checkers, and what they report.
#pragma once

#include "regions.h"

namespace metalsim {

// Where a thread stood at an access that a checker remembers.
struct Place {
  uint64_t code;  // see code_offset
  AccessKind kind;
  uint32_t thread;
  uint32_t threadgroup[3];
};

// findings.cpp: adds to the launch's findings, or to the count of an equal one.
void report(Fiber& fiber, uint32_t kind, const Access& access, const Region& region,
            const Place* other = nullptr, uint32_t alignment = 0);

// The same of an index outside of an array, of which no more than the type is known.
void report_index(Fiber& fiber, const void* code, const char* type, int64_t index);

bool check_bounds(Fiber& fiber, const Access& access, const Region& region);
inline constexpr Listener bounds_listener = {METALSIM_BOUNDS, nullptr, nullptr, check_bounds,
                                             nullptr,         nullptr, nullptr};

// profile.cpp
bool count_access(Fiber& fiber, const Access& access, const Region& region);
bool open_profile(Threadgroup& group);
void end_profile(Threadgroup& group);
void close_profile();
inline constexpr Listener counting_listener = {0,       nullptr, nullptr, count_access,
                                               nullptr, nullptr, nullptr};
inline constexpr Listener profile_listener = {METALSIM_PROFILE, open_profile, nullptr,      nullptr,
                                              nullptr,          end_profile,  close_profile};

bool open_races(Threadgroup& group);
void begin_races(Threadgroup& group);
bool check_races(Fiber& fiber, const Access& access, const Region& region);
void order_accesses(Fiber& fiber, Scope scope, uint32_t flags);
void close_races();
inline constexpr Listener races_listener = {METALSIM_RACES, open_races, begin_races, check_races,
                                            order_accesses, nullptr,    close_races};

bool open_uninitialized(Threadgroup& group);
void begin_uninitialized(Threadgroup& group);
bool check_uninitialized(Fiber& fiber, const Access& access, const Region& region);
void close_uninitialized();
inline constexpr Listener uninitialized_listener = {METALSIM_UNINITIALIZED,
                                                    open_uninitialized,
                                                    begin_uninitialized,
                                                    check_uninitialized,
                                                    nullptr,
                                                    nullptr,
                                                    close_uninitialized};

}  // namespace metalsim
