/* Classifies an image with a .tadder file, without Python:
 *
 *     classify lenet5bn.tadder digit.pgm [threads]
 *
 * docs/engine.md shows how to compile it. The image is a binary PGM (grey) or PPM (colour) of the
 * network's own size with 8 bits; most image programs write these.
 */
#define _POSIX_C_SOURCE 199309L /* for clock_gettime */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "torchadder_engine.h"

static void *allocated[3]; /* pixels, images, logits: finish() frees them */
static torchadder_engine *engine;

static int finish(int status) {
  for (int i = 0; i < 3; ++i) free(allocated[i]);
  torchadder_engine_free(engine);
  return status;
}

static int error(const char *what, const char *which) {
  fprintf(stderr, "classify: %s: %s\n", which, what);
  return finish(2);
}

/* Returns the next number in the header of a PGM or PPM, or -1; skips comments, which GIMP writes. */
static long next_number(FILE *file) {
  long number = -1;
  int c = fgetc(file);
  for (; c == '#' || c == ' ' || c == '\t' || c == '\r' || c == '\n'; c = fgetc(file))
    if (c == '#')
      while (c != '\n' && c != EOF) c = fgetc(file);
  ungetc(c, file);
  return fscanf(file, "%ld", &number) == 1 ? number : -1;
}

/* Returns the pixels of a PGM or PPM of this size, or NULL. Closes the file. */
static unsigned char *read_image(FILE *file, long channels, long height, long width) {
  const size_t size = (size_t)(channels * height * width);
  unsigned char *pixels = NULL;
  if (fgetc(file) == 'P' && fgetc(file) == (channels == 1 ? '5' : '6') && next_number(file) == width &&
      next_number(file) == height && next_number(file) == 255 && fgetc(file) != EOF) {
    pixels = malloc(size);
    if (pixels && fread(pixels, 1, size, file) != size) {
      free(pixels);
      pixels = NULL;
    }
  }
  fclose(file);
  return pixels;
}

int main(int argc, char **argv) {
  if (argc < 3) return error("usage: classify FILE.tadder IMAGE.pgm|ppm [threads]", argv[0]);
  engine = torchadder_engine_load(argv[1], argc > 3 ? atoi(argv[3]) : 1);
  if (!engine) {
    fprintf(stderr, "classify: %s\n", torchadder_last_error()); /* names the file */
    return finish(2);
  }
  const torchadder_engine_about about = torchadder_engine_describe(engine);
  const char *mean = torchadder_engine_note(engine, "mean"), *std = torchadder_engine_note(engine, "std");
  if (!mean || !std) return error("it has no mean and std of the pixels: write it with torchadder quantize", argv[1]);
  if (about.channels != 1 && about.channels != 3) return error("its images are neither grey nor colour", argv[1]);

  const long channels = (long)about.channels, area = (long)(about.height * about.width);
  FILE *file = fopen(argv[2], "rb");
  if (!file) return error(strerror(errno), argv[2]);
  unsigned char *pixels = allocated[0] = read_image(file, channels, (long)about.height, (long)about.width);
  if (!pixels) {
    fprintf(stderr, "classify: %s: expected a binary P%d of %ld x %ld pixels, 8 bits: resize it first\n", argv[2],
            channels == 1 ? 5 : 6, (long)about.width, (long)about.height);
    return finish(2);
  }
  float *images = allocated[1] = malloc(sizeof(float) * (size_t)(channels * area));
  float *logits = allocated[2] = malloc(sizeof(float) * (size_t)about.classes);
  if (!images || !logits) return error("out of memory", argv[0]);
  for (long c = 0; c < channels; ++c) {
    char *mean_end, *std_end;
    const float m = strtof(mean, &mean_end), s = strtof(std, &std_end);
    if (mean_end == mean || std_end == std || !(s > 0)) return error("mean or std is not a number", argv[1]);
    mean = mean_end, std = std_end;
    for (long i = 0; i < area; ++i) images[c * area + i] = ((float)pixels[i * channels + c] / 255.0f - m) / s;
  }

  struct timespec start, end;
  if (torchadder_engine_run_f32(engine, images, 1, logits, NULL)) return error(torchadder_last_error(), argv[1]);
  clock_gettime(CLOCK_MONOTONIC, &start);
  torchadder_engine_run_f32(engine, images, 1, logits, NULL);
  clock_gettime(CLOCK_MONOTONIC, &end);

  long best = 0;
  for (long c = 0; c < about.classes; ++c) {
    printf("%4ld  %9.4f\n", c, logits[c]);
    if (logits[c] > logits[best]) best = c;
  }
  printf("class %ld · %.1f us · %s · %lld bytes of weights, %lld of arena\n", best,
         1e6 * (double)(end.tv_sec - start.tv_sec) + 1e-3 * (double)(end.tv_nsec - start.tv_nsec),
         torchadder_engine_kernel(engine, 0), (long long)about.weight_bytes, (long long)about.arena_bytes);
  return finish(0);
}
