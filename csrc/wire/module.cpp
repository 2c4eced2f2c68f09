// Python bindings: buffers in, fresh arrays out, the GIL released while bytes are worked on.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

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
  m.def("bits_from_indices", &bits_from_indices, py::arg("indices").noconvert(), py::arg("size"));
  m.def("indices_from_bits", &indices_from_bits, py::arg("bits").noconvert(), py::arg("size"),
        py::arg("count"));
  m.def("all_finite", &all_finite<uint16_t>, py::arg("bits").noconvert(), py::arg("infinity"));
  m.def("all_finite", &all_finite<uint32_t>, py::arg("bits").noconvert(), py::arg("infinity"));
  m.def("all_finite", &all_finite<uint64_t>, py::arg("bits").noconvert(), py::arg("infinity"));
}
