// Whether matrix tiles run, and which: those of the processor, or the ones that FEDSPARSE_TILES or
// `set_tiles` names.
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

#include "amx_conv2d.h"

#if defined(FEDSPARSE_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fedsparse {
namespace {

#if defined(FEDSPARSE_X86) && defined(__linux__)

bool has_instructions() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("fma"))
    return false;
  constexpr unsigned kBf16 = 1u << 22, kTileBit = 1u << 24;  // of leaf 7
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBf16) && (d & kTileBit);
}

// Tile registers are large: Linux saves them only for processes that asked.
bool is_permitted() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

bool runs_amx() {
  static const bool runs = has_instructions() && is_permitted();
  return runs;
}

#endif

// Those of the processor first.
std::vector<const TileKernels*> runnable() {
  std::vector<const TileKernels*> found;
#if defined(FEDSPARSE_X86) && defined(__linux__)
  if (runs_amx()) found.push_back(&kTiles_amx);
#endif
  found.push_back(&kTiles_emulated);
  return found;
}

std::string runnable_names() {
  std::string names;
  for (const TileKernels* tiles : runnable()) names += std::string(tiles->name) + ", ";
  return names + "none";
}

struct Choice {
  bool made;
  const TileKernels* tiles;
};
std::atomic<const Choice*> current{nullptr};

const Choice* by_name(const std::string& name, const char* source) {
  static const Choice none{true, nullptr}, emulated{true, &kTiles_emulated};
  if (name == "none") return &none;
  if (name == kTiles_emulated.name) return &emulated;
#if defined(FEDSPARSE_X86) && defined(__linux__)
  static const Choice amx{true, &kTiles_amx};
  if (name == kTiles_amx.name && runs_amx()) return &amx;
#endif
  fail(source, " is '", name, "', but this machine runs: ", runnable_names(), ".");
}

const Choice* by_default() {
  const char* wish = std::getenv("FEDSPARSE_TILES");
  if (wish && *wish) return by_name(wish, "FEDSPARSE_TILES");
  const TileKernels* best = runnable().front();
  return by_name(best == &kTiles_emulated ? "none" : best->name, "the processor");
}

void set_tiles(std::string name) { current = name.empty() ? nullptr : by_name(name, "the kind of tiles"); }

Tensor tile_multiply(Tensor a_in, Tensor b_in, Tensor c_in) {
  const char* op = "tile_multiply";
  const Tensor a = checked_operand(op, "a", a_in, 2), b = checked_operand(op, "b", b_in, 3);
  const Tensor c = torch::stable::clone(checked_floats(op, "c", c_in, 2));
  const int64_t depth = a.size(1);
  require(is_bf16(a) && is_bf16(b) && c.scalar_type() == ScalarType::Float, op,
          ": a and b must be bfloat16, c float32.");
  require(depth >= 2 && depth <= kDepth && depth % 2 == 0, op,
          ": a must have 2 to 32 columns, an even number.");
  require(a.size(0) == kSide && b.size(0) == depth / 2 && b.size(1) == kSide && b.size(2) == 2 &&
              c.size(0) == kSide && c.size(1) == kSide,
          op, ": the shapes must be [16, K], [K / 2, 16, 2] and [16, 16].");
  required_tiles(op).multiply(in_ptr<Bf16>(a), in_ptr<Bf16>(b), depth, out_ptr<float>(c));
  return c;
}

std::string tiles() { return chosen_tiles() ? chosen_tiles()->name : "none"; }

}  // namespace

const TileKernels* chosen_tiles() {
  const Choice* choice = current.load();
  if (choice == nullptr) current = choice = by_default();
  return choice->tiles;
}

const TileKernels& line_tiles() { return chosen_tiles() ? *chosen_tiles() : kTiles_emulated; }

const TileKernels& required_tiles(const char* op) {
  const TileKernels* found = chosen_tiles();
  require(found != nullptr, op,
          ": bfloat16 needs a processor with amx-tile and amx-bf16, or FEDSPARSE_TILES=emulated.");
  return *found;
}

}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CompositeExplicitAutograd, m) {
  m.impl("set_tiles", TORCH_BOX(&fedsparse::set_tiles));
  m.impl("tiles", TORCH_BOX(&fedsparse::tiles));
  m.impl("tile_kinds", TORCH_BOX(&fedsparse::runnable_names));
}

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("tile_multiply", TORCH_BOX(&fedsparse::tile_multiply));
}
