/* The program that picorv32.cpp runs: a test of an exported network, then one image, timed. */
#include "net.h"

static net_arena arena;
static uint8_t input[NET_INPUT_SIZE];
static int32_t logits[NET_CLASSES];

static uint32_t cycles(void) {
  uint32_t now;
  __asm__ volatile("rdcycle %0" : "=r"(now));
  return now;
}

__attribute__((used)) static void begin(void) {
  volatile uint32_t *const output = (volatile uint32_t *)0x10000000;
  *output = (uint32_t)net_test(&arena);
  const uint32_t start = cycles();
  net_run(&arena, input, logits);
  *output = cycles() - start;
  for (;;) {
  }
}

__attribute__((section(".start"), naked, used)) static void start(void) {
  __asm__ volatile("la sp, stack_top\n\tj begin");
}
