// Activations of 32 and 16 bits, or four of 8 in a word; and four activations at a time.

#ifndef CUDA_ON_CPU  // where tests compile this file, which bring their own
__device__ inline float half_to_float(unsigned short bits) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
  return wide;
}
__device__ inline unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
__device__ inline unsigned distance4(unsigned x, unsigned w, unsigned sum) {  // + |x - w| of four unsigned bytes
  asm("vabsdiff4.u32.u32.u32.add %0, %1, %2, %0;" : "+r"(sum) : "r"(x), "r"(w));
  return sum;
}
// Words of memory, or zeros. The compiler moves nothing that waits for them up here, as it does behind a branch.
__device__ inline void load_words(unsigned (&to)[4], const void *from, bool exists) {
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
      "  @p ld.global.v4.b32 {%0, %1, %2, %3}, [%4]; }"
      : "=&r"(to[0]), "=&r"(to[1]), "=&r"(to[2]), "=&r"(to[3])
      : "l"(from), "r"(static_cast<int>(exists)));
}
__device__ inline void load_words(unsigned (&to)[2], const void *from, bool exists) {
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0; @p ld.global.v2.b32 {%0, %1}, [%2]; }"
      : "=&r"(to[0]), "=&r"(to[1])
      : "l"(from), "r"(static_cast<int>(exists)));
}
#endif

struct Half {
  unsigned short bits;
};
struct Bfloat {
  unsigned short bits;
};

__device__ inline float widened(float value) { return value; }
__device__ inline unsigned widened(unsigned value) { return value; }
__device__ inline float widened(Bfloat value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }
__device__ inline float widened(Half value) { return half_to_float(value.bits); }

template <class T>
__device__ T narrowed(float value);
template <class T>
__device__ T narrowed(unsigned value) {
  return value;
}
template <>
__device__ inline float narrowed<float>(float value) {
  return value;
}
template <>
__device__ inline Bfloat narrowed<Bfloat>(float value) {  // to the nearest, ties to even
  const unsigned bits = __float_as_uint(value);
  if (value != value) return {static_cast<unsigned short>(bits >> 16 | 64)};
  return {static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
__device__ inline Half narrowed<Half>(float value) {
  return {float_to_half(value)};
}

// Four neighbours in memory, one access.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

// The same on their way from memory: `load` waits for nothing, what uses [i] does.
template <class T>
struct Words {
  unsigned words[sizeof(T)];
  __device__ void load(const T *from, bool exists) { load_words(words, from, exists); }
  __device__ T operator[](int i) const { return T{static_cast<unsigned short>(words[i / 2] >> 16 * (i % 2))}; }
};
template <>
__device__ inline unsigned Words<unsigned>::operator[](int i) const {
  return words[i];
}
template <>
__device__ inline float Words<float>::operator[](int i) const {
  return __uint_as_float(words[i]);
}
