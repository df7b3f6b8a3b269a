#include "layer.c"

#if defined(TORCHADDER_NO_MULTIPLIER)

/* PRODUCT(x, w) = q(x + w) - q(x - w) with q(n) = n * n / 4 rounded down, since both squares are odd or both even; x is
 * 0..255 and w -128..127, and the table holds q(-128) to q(383). */
#define QUARTER(n) ((n) - 128) * ((n) - 128) / 4
#define QUARTERS_4(n) QUARTER(n), QUARTER(n + 1), QUARTER(n + 2), QUARTER(n + 3)
#define QUARTERS_16(n) QUARTERS_4(n), QUARTERS_4(n + 4), QUARTERS_4(n + 8), QUARTERS_4(n + 12)
#define QUARTERS_64(n) QUARTERS_16(n), QUARTERS_16(n + 16), QUARTERS_16(n + 32), QUARTERS_16(n + 48)
static const uint16_t quarter_squares[512] = {QUARTERS_64(0),   QUARTERS_64(64),  QUARTERS_64(128), QUARTERS_64(192),
                                              QUARTERS_64(256), QUARTERS_64(320), QUARTERS_64(384), QUARTERS_64(448)};
#define PRODUCT(x, w) (quarter_squares[128 + (x) + (w)] - quarter_squares[128 + (x) - (w)])

#else
#define PRODUCT(x, w) ((x) * (w))
#endif
