/* Tests net.c on this device: inputs whose logits torchadder has computed. With NET_TEST_MAIN it is a program that
 * returns the number of failures; without, call net_test(). */
#include "net.h"

#define VECTORS $vectors

static const int32_t expected[VECTORS][NET_CLASSES] = {$expected};

/* Input 0 is all 0, input 1 all NET_INPUT_MAX; the others are pseudo-random, the same on every machine. */
static void make_input(int32_t vector, uint8_t *input) {
  uint32_t state = (uint32_t)vector;
  for (int32_t i = 0; i < NET_INPUT_SIZE; ++i) {
    state = state * 1664525u + 1013904223u;
    input[i] = (uint8_t)(vector == 0 ? 0 : vector == 1 ? NET_INPUT_MAX : (state >> 24) * (NET_INPUT_MAX + 1) >> 8);
  }
}

int32_t net_test(net_arena *arena) {
  static uint8_t input[NET_INPUT_SIZE];
  static int32_t logits[NET_CLASSES];
  int32_t failures = 0;
  for (int32_t vector = 0; vector < VECTORS; ++vector) {
    int32_t best = 0, is_wrong = 0;
    make_input(vector, input);
    const int32_t label = net_run(arena, input, logits);
    for (int32_t c = 0; c < NET_CLASSES; ++c) {
      if (logits[c] != expected[vector][c]) is_wrong = 1;
      if (expected[vector][c] > expected[vector][best]) best = c;
    }
    if (is_wrong || label != best) ++failures;
  }
  return failures;
}

#ifdef NET_TEST_MAIN
int main(void) {
  static net_arena arena;
  return (int)net_test(&arena);
}
#endif
