// Which instruction set runs: the best one of this machine, or the one that FEDSPARSE_ISA or `set_isa` names.
#include "isa.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

#include "check.h"

namespace fedsparse {
namespace {

// Best first.
std::vector<const Isa*> runnable() {
  std::vector<const Isa*> found;
#if defined(FEDSPARSE_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("fma"))
    found.push_back(&kIsa_avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kIsa_avx2);
#endif
  found.push_back(&kIsa_portable);
  return found;
}

std::string runnable_names() {
  std::string names;
  for (const Isa* isa : runnable()) names += (names.empty() ? "" : ", ") + std::string(isa->name);
  return names;
}

const Isa* by_name(const std::string& name, const char* source) {
  for (const Isa* isa : runnable())
    if (name == isa->name) return isa;
  fail(source, " is '", name, "', but this machine runs: ", runnable_names(), ".");
}

std::atomic<const Isa*> current{nullptr};

void set_isa(std::string name) { current = name.empty() ? nullptr : by_name(name, "the instruction set"); }
std::string isa() { return chosen_isa().name; }
std::string isas() { return runnable_names(); }

std::string build_info() {
#if defined(__VERSION__)
  return std::string("compiler ") + __VERSION__ + ", torch stable ABI 2.11";
#else
  return "torch stable ABI 2.11";
#endif
}

}  // namespace

const Isa& chosen_isa() {
  const Isa* isa = current.load();
  if (isa == nullptr) {
    const char* wish = std::getenv("FEDSPARSE_ISA");
    isa = wish && *wish ? by_name(wish, "FEDSPARSE_ISA") : runnable().front();
    current = isa;
  }
  return *isa;
}

template <>
const Kernels<float>& kernels<float>() {
  return chosen_isa().single;
}

template <>
const Kernels<double>& kernels<double>() {
  return chosen_isa().twice;
}

}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CompositeExplicitAutograd, m) {
  m.impl("set_isa", TORCH_BOX(&fedsparse::set_isa));
  m.impl("isa", TORCH_BOX(&fedsparse::isa));
  m.impl("isas", TORCH_BOX(&fedsparse::isas));
  m.impl("build_info", TORCH_BOX(&fedsparse::build_info));
}
