/* Starts main() on a Cortex-M and returns its result to the emulator. */
#include <stdint.h>
#include <string.h>

extern uint32_t bss_start[], bss_end[];
void stack_top(void); /* an address, as the first vector needs it */
int main(void);

/* Semihosting: SYS_EXIT_EXTENDED, with the reason that an application has ended. */
static void leave(uint32_t code) {
  const uint32_t block[2] = {0x20026, code};
  register uint32_t operation __asm__("r0") = 0x20;
  register const uint32_t *argument __asm__("r1") = block;
  __asm__ volatile("bkpt 0xAB" : : "r"(operation), "r"(argument) : "memory");
  for (;;) {
  }
}

static void reset(void) {
  memset(bss_start, 0, (size_t)((char *)bss_end - (char *)bss_start));
  leave((uint32_t)main());
}

static void fault(void) { leave(99); }

__attribute__((section(".start"), used)) static void (*const vectors[])(void) = {
    stack_top, reset, fault, fault, fault, fault, fault,
};
