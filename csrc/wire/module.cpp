// Python bindings: buffers in, fresh arrays out, the GIL released while bytes are worked on.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "wire.h"

namespace py = pybind11;
namespace wire = fedsparse::wire;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Bytes = Array<uint8_t>;

// The codec's sets live in [0, 2^32); larger sizes would also overflow the byte counts below.
size_t checked_size(int64_t size) {
  if (size < 0 || size > (int64_t{1} << 32))
    throw std::invalid_argument("size must be in [0, 2^32], got " + std::to_string(size));
  return static_cast<size_t>(size);
}

size_t bitmap_length(size_t size) { return size / 8 + (size % 8 != 0); }

using Checksum = uint32_t (*)(const uint8_t*, size_t, uint32_t);

template <Checksum function>
uint32_t checksum(const Bytes& data, uint32_t seed) {
  const uint8_t* bytes = data.data();
  const size_t length = data.size();
  py::gil_scoped_release release;
  return function(bytes, length, seed);
}

Bytes pack_bits(const Bytes& mask) {
  const size_t size = mask.size();
  Bytes bits(bitmap_length(size));
  const uint8_t* in = mask.data();
  uint8_t* out = bits.mutable_data();
  py::gil_scoped_release release;
  wire::pack_bits(in, size, out);
  return bits;
}

Array<bool> unpack_bits(const Bytes& bits, int64_t size) {
  // A wrong length must fail before the mask is allocated from a claimed size.
  if (bitmap_length(checked_size(size)) != static_cast<size_t>(bits.size()))
    throw std::invalid_argument("a bitmap of " + std::to_string(size) + " bits cannot take " +
                                std::to_string(bits.size()) + " bytes");
  Array<bool> mask(size);
  const uint8_t* in = bits.data();
  const size_t length = bits.size();
  uint8_t* out = reinterpret_cast<uint8_t*>(mask.mutable_data());
  py::gil_scoped_release release;
  wire::unpack_bits(in, length, size, out);
  return mask;
}

size_t count_bits(const Bytes& bits) {
  const uint8_t* in = bits.data();
  const size_t length = bits.size();
  py::gil_scoped_release release;
  return wire::count_bits(in, length);
}

size_t delta_length(const Array<int64_t>& indices, int64_t size) {
  checked_size(size);
  const int64_t* in = indices.data();
  const size_t count = indices.size();
  py::gil_scoped_release release;
  return wire::delta_length(in, count, size);
}

Bytes delta_encode(const Array<int64_t>& indices, int64_t size) {
  const size_t length = delta_length(indices, size);
  Bytes data(length);
  const int64_t* in = indices.data();
  const size_t count = indices.size();
  uint8_t* out = data.mutable_data();
  py::gil_scoped_release release;
  wire::delta_encode(in, count, out, length);
  return data;
}

Array<int64_t> delta_decode(const Bytes& data, int64_t count, int64_t size) {
  const size_t length = data.size();
  checked_size(size);
  // Every index takes at least a byte, so the allocation is bounded by the bytes present.
  if (count < 0 || static_cast<size_t>(count) > length)
    throw std::invalid_argument(std::to_string(length) + " bytes cannot hold " + std::to_string(count) +
                                " delta-coded indices");
  Array<int64_t> indices(count);
  const uint8_t* in = data.data();
  int64_t* out = indices.mutable_data();
  py::gil_scoped_release release;
  wire::delta_decode(in, length, count, size, out);
  return indices;
}

Bytes rice_encode(const Array<int64_t>& indices, int64_t size, int64_t length) {
  if (length < 0) throw std::invalid_argument("a length cannot be below 0");
  checked_size(size);
  Bytes data(length);
  const int64_t* in = indices.data();
  const size_t count = indices.size();
  uint8_t* out = data.mutable_data();
  py::gil_scoped_release release;
  wire::rice_encode(in, count, size, out, length);
  return data;
}

// (bytes as LEB128 gaps, bytes as Rice-coded gaps)
std::pair<size_t, size_t> coded_lengths(const Array<int64_t>& indices, int64_t size) {
  const size_t delta = delta_length(indices, size);
  const int64_t* in = indices.data();
  const size_t count = indices.size();
  py::gil_scoped_release release;
  return {delta, wire::rice_length(in, count, size)};
}

Array<int64_t> rice_decode(const Bytes& data, int64_t count, int64_t size) {
  const size_t length = data.size();
  checked_size(size);
  // Every index takes at least a bit, so the allocation is bounded by the bytes present.
  if (count < 0 || static_cast<size_t>(count) > 8 * length)
    throw std::invalid_argument(std::to_string(length) + " bytes cannot hold " + std::to_string(count) +
                                " Rice-coded indices");
  Array<int64_t> indices(count);
  const uint8_t* in = data.data();
  int64_t* out = indices.mutable_data();
  py::gil_scoped_release release;
  wire::rice_decode(in, length, count, size, out);
  return indices;
}

// The lengths of consecutive segments must add up to `count`.
void check_segments(const Array<int64_t>& lengths, size_t count) {
  const int64_t* length = lengths.data();
  size_t left = count;
  for (py::ssize_t k = 0; k < lengths.size(); ++k) {
    if (length[k] < 0 || static_cast<size_t>(length[k]) > left)
      throw std::invalid_argument("segment " + std::to_string(k) + " has " + std::to_string(length[k]) +
                                  " values where " + std::to_string(left) + " are left");
    left -= length[k];
  }
  if (left != 0)
    throw std::invalid_argument(std::to_string(left) + " of " + std::to_string(count) +
                                " values belong to no segment");
}

// (int8 values, float32 scale of each segment)
std::pair<Array<int8_t>, Array<float>> quantise(const Array<float>& values, const Array<int64_t>& lengths,
                                                uint64_t seed) {
  check_segments(lengths, values.size());
  Array<int8_t> quantised(values.size());
  Array<float> scales(lengths.size());
  const float* in = values.data();
  const int64_t* length = lengths.data();
  const size_t segments = lengths.size();
  int8_t* out = quantised.mutable_data();
  float* scale = scales.mutable_data();
  {
    py::gil_scoped_release release;
    size_t start = 0;
    for (size_t k = 0; k < segments; start += length[k++])
      scale[k] = wire::quantise(in + start, length[k], seed, start, out + start);
  }
  return {quantised, scales};
}

Array<float> dequantise(const Array<int8_t>& quantised, const Array<int64_t>& lengths,
                        const Array<float>& scales) {
  check_segments(lengths, quantised.size());
  if (scales.size() != lengths.size()) throw std::invalid_argument("every segment needs one scale");
  Array<float> values(quantised.size());
  const int8_t* in = quantised.data();
  const int64_t* length = lengths.data();
  const float* scale = scales.data();
  const size_t segments = lengths.size();
  float* out = values.mutable_data();
  py::gil_scoped_release release;
  size_t start = 0;
  for (size_t k = 0; k < segments; start += length[k++])
    wire::dequantise(in + start, length[k], scale[k], out + start);
  return values;
}

// The kernel may back a large, fresh buffer by large pages: 500 times fewer page faults while it is filled.
void ask_for_large_pages([[maybe_unused]] char* data, [[maybe_unused]] size_t length) {
#if defined(__linux__)
  constexpr uintptr_t page = 4096;
  const uintptr_t start = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  if (length >= (size_t{1} << 22)) madvise(reinterpret_cast<void*>(start), length - page, MADV_HUGEPAGE);
#endif
}

// A message: the start of its header, the checksum of the payload, that of all this, and the payload.
py::bytes seal(const py::bytes& start, const std::vector<Bytes>& payload) {
  constexpr size_t kChecksum = sizeof(uint32_t);
  const size_t begun = PyBytes_GET_SIZE(start.ptr()), head = begun + 2 * kChecksum;
  std::vector<std::pair<const uint8_t*, size_t>> spans;
  size_t length = head;
  for (const Bytes& chunk : payload) {
    spans.emplace_back(chunk.data(), chunk.size());
    length += chunk.size();
  }
  py::bytes message(static_cast<const char*>(nullptr), length);
  char* out = PyBytes_AS_STRING(message.ptr());
  std::memcpy(out, PyBytes_AS_STRING(start.ptr()), begun);
  py::gil_scoped_release release;
  ask_for_large_pages(out, length);
  uint8_t* bytes = reinterpret_cast<uint8_t*>(out);
  uint8_t* at = bytes + head;
  uint32_t crc = 0;
  for (const auto& [data, size] : spans) {
    crc = wire::copy_crc32c(data, size, crc, at);
    at += size;
  }
  std::memcpy(out + begun, &crc, kChecksum);
  crc = wire::crc32c(bytes, begun + kChecksum, 0);
  std::memcpy(out + begun + kChecksum, &crc, kChecksum);
  return message;
}

Bytes bits_from_indices(const Array<int64_t>& indices, int64_t size) {
  Bytes bits(bitmap_length(checked_size(size)));
  const int64_t* in = indices.data();
  const size_t count = indices.size();
  uint8_t* out = bits.mutable_data();
  py::gil_scoped_release release;
  wire::bits_from_indices(in, count, size, out);
  return bits;
}

Array<int64_t> indices_from_bits(const Bytes& bits, int64_t size, int64_t count) {
  const size_t length = bits.size(), set = count_bits(bits);
  checked_size(size);
  if (count < 0 || static_cast<size_t>(count) != set)
    throw std::invalid_argument("the bitmap has " + std::to_string(set) + " bits set where " +
                                std::to_string(count) + " are announced");
  Array<int64_t> indices(count);
  const uint8_t* in = bits.data();
  int64_t* out = indices.mutable_data();
  py::gil_scoped_release release;
  wire::indices_from_bits(in, length, size, count, out);
  return indices;
}

template <typename Bits>
bool all_finite(const Array<Bits>& array, Bits infinity) {
  const Bits* in = array.data();
  const size_t length = array.size();
  py::gil_scoped_release release;
  return wire::all_finite<Bits>(in, length, infinity);
}

float magnitude(const Array<float>& values) {
  const float* in = values.data();
  const size_t count = values.size();
  py::gil_scoped_release release;
  return wire::magnitude(in, count);
}

void same_length(size_t sums, size_t other, const char* what) {
  if (sums != other)
    throw std::invalid_argument(std::to_string(sums) + " sums, but " + std::to_string(other) + what);
}

void add_fixed(Array<int64_t>& sums, const Array<float>& values, double scale) {
  same_length(sums.size(), values.size(), " values");
  int64_t* out = sums.mutable_data();
  const float* in = values.data();
  const size_t count = values.size();
  py::gil_scoped_release release;
  wire::add_fixed(out, in, count, scale);
}

}  // namespace

PYBIND11_MODULE(_wire, m) {
  m.doc() = "Bit, index and checksum primitives of fedsparse.wire over numpy arrays.";
  m.def("crc32c", &checksum<wire::crc32c>, py::arg("data").noconvert(), py::arg("seed") = 0);
  m.def("crc32c_portable", &checksum<wire::crc32c_portable>, py::arg("data").noconvert(),
        py::arg("seed") = 0);
  m.def("crc32c_has_hardware", &wire::crc32c_has_hardware);
  m.def("pack_bits", &pack_bits, py::arg("mask").noconvert());
  m.def("unpack_bits", &unpack_bits, py::arg("bits").noconvert(), py::arg("size"));
  m.def("count_bits", &count_bits, py::arg("bits").noconvert());
  m.def("delta_length", &delta_length, py::arg("indices").noconvert(), py::arg("size"));
  m.def("delta_encode", &delta_encode, py::arg("indices").noconvert(), py::arg("size"));
  m.def("delta_decode", &delta_decode, py::arg("data").noconvert(), py::arg("count"), py::arg("size"));
  m.def("coded_lengths", &coded_lengths, py::arg("indices").noconvert(), py::arg("size"));
  m.def("rice_encode", &rice_encode, py::arg("indices").noconvert(), py::arg("size"), py::arg("length"));
  m.def("rice_decode", &rice_decode, py::arg("data").noconvert(), py::arg("count"), py::arg("size"));
  m.def("quantise", &quantise, py::arg("values").noconvert(), py::arg("lengths").noconvert(),
        py::arg("seed"));
  m.def("dequantise", &dequantise, py::arg("quantised").noconvert(), py::arg("lengths").noconvert(),
        py::arg("scales").noconvert());
  m.def("seal", &seal, py::arg("start"), py::arg("payload").noconvert());
  m.def("bits_from_indices", &bits_from_indices, py::arg("indices").noconvert(), py::arg("size"));
  m.def("indices_from_bits", &indices_from_bits, py::arg("bits").noconvert(), py::arg("size"),
        py::arg("count"));
  m.def("magnitude", &magnitude, py::arg("values").noconvert());
  m.def("add_fixed", &add_fixed, py::arg("sums").noconvert(), py::arg("values").noconvert(),
        py::arg("scale"));
  m.def("all_finite", &all_finite<uint16_t>, py::arg("bits").noconvert(), py::arg("infinity"));
  m.def("all_finite", &all_finite<uint32_t>, py::arg("bits").noconvert(), py::arg("infinity"));
  m.def("all_finite", &all_finite<uint64_t>, py::arg("bits").noconvert(), py::arg("infinity"));
}
