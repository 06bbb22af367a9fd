// Integer division by zero does not end the process.
#pragma once

namespace metalsim {

// While one of these lives, divisions by zero in kernels give a value.
class DivisionScope {
 public:
  DivisionScope();
  ~DivisionScope();
  DivisionScope(const DivisionScope&) = delete;
  DivisionScope& operator=(const DivisionScope&) = delete;
};

}  // namespace metalsim
