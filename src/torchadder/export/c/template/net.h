/* $title
 *
 * Written by torchadder $version from a .tadder file with the sha256
 *   $sha256
 *
 *   constant tables (flash)  $flash bytes, and the code of net.c
 *   arena (RAM)              $arena bytes, and up to 400 bytes of stack
 *   operations of an image   $operations
 *
 * Use:
 *
 *     static net_arena arena;
 *     static uint8_t input[NET_INPUT_SIZE];
 *     static int32_t logits[NET_CLASSES];
 *
 *     ... fill input, see below ...
 *     int32_t label = net_run(&arena, input, logits);
 *
 * Nothing is allocated and no state is kept between calls: calls with arenas of their own may run at the same time, and
 * networks that run one after the other may share the memory of an arena.
 */
#ifndef NET_H
#define NET_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The input: pixels from left to right, rows from top to bottom, the channels of a pixel side by side,
 *   input[(row * NET_INPUT_WIDTH + column) * NET_INPUT_CHANNELS + channel]
 * It holds quantized values 0..NET_INPUT_MAX. Of a real number x, as the network takes it in float32, the quantized
 * value is
 *
$formula
 */
#define NET_INPUT_HEIGHT $height
#define NET_INPUT_WIDTH $width
#define NET_INPUT_CHANNELS $channels
#define NET_INPUT_MAX $input_max
#define NET_INPUT_SIZE (NET_INPUT_HEIGHT * NET_INPUT_WIDTH * NET_INPUT_CHANNELS)

/* The logits: one number for each class, in units of NET_LOGIT_SCALE; the real logit is logit * NET_LOGIT_SCALE. */
#define NET_CLASSES $classes
#define NET_LOGIT_SCALE $logit_scale

#define NET_FLASH_BYTES $flash /* constant tables; the code comes on top */
#define NET_ARENA_BYTES $arena /* the memory that net_run works in; input, logits and stack come on top */
#define NET_OPERATIONS $operation_count

typedef struct {
  uint32_t words[(NET_ARENA_BYTES + 3) / 4];
} net_arena;

/* $pixel_helper */

/* Computes the logits of an input. Returns the class with the largest one, the first of several. */
int32_t net_run(net_arena *arena, const uint8_t input[NET_INPUT_SIZE], int32_t logits[NET_CLASSES]);

/* Computes a few inputs whose logits are known, and returns how many come out differently: 0. In net_test.c. */
int32_t net_test(net_arena *arena);

#ifdef __cplusplus
}
#endif
#endif
