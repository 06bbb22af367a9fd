// fast:: and precise:: have the same functions, of which a program may add overloads. Lint reads
// this header too.
#pragma once

// Behind all overloads of a function in namespace metal.
#define METALSIM_ALSO(name) \
  namespace fast {          \
  using metal::name;        \
  }                         \
  namespace precise {       \
  using metal::name;        \
  }
