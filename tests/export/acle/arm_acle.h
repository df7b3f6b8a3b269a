/* The instructions of Arm that the kernels use, in portable C, so that any machine runs the kernels for Arm. */
#include <stdint.h>

typedef int32_t int8x4_t;
typedef int32_t int16x2_t;

static inline uint32_t __usada8(uint32_t x, uint32_t w, uint32_t sum) {
  for (int i = 0; i < 32; i += 8) {
    const uint32_t a = (x >> i) & 255, b = (w >> i) & 255;
    sum += a > b ? a - b : b - a;
  }
  return sum;
}

static inline int16x2_t __sxtb16(int8x4_t x) {
  return (int16x2_t)(((uint32_t)(int8_t)x & 0xFFFF) | (uint32_t)(int8_t)(x >> 16) << 16);
}

static inline int32_t __smlad(int16x2_t x, int16x2_t w, int32_t sum) {
  const int32_t low = (int16_t)x * (int16_t)w, high = (int16_t)(x >> 16) * (int16_t)(w >> 16);
  return (int32_t)((uint32_t)sum + (uint32_t)low + (uint32_t)high); /* it wraps around */
}
