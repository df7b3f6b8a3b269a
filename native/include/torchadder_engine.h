/* torchadder: runs a quantized network from a .tadder file, as a C interface.
 *
 *     torchadder_engine *engine = torchadder_engine_load("lenet.tadder", 1);
 *     if (!engine) fputs(torchadder_last_error(), stderr);
 *     torchadder_engine_run_f32(engine, images, 1, logits, NULL);
 *     torchadder_engine_free(engine);
 *
 * A file may come from a stranger: every number is checked before anything runs. An engine allocates all its memory
 * when it is loaded. Calls of one engine from several threads run one after the other. A process may fork at any time,
 * and both sides may use the engine. Functions that return int return 0, or -1 with a line in torchadder_last_error()
 * (torchadder.h). torchadder/quant/file.py describes the file format.
 */
#ifndef TORCHADDER_ENGINE_H
#define TORCHADDER_ENGINE_H

#include <stddef.h>

#include "torchadder.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct torchadder_engine torchadder_engine;

/* Checks a .tadder file in memory and prepares nothing to run. Returns 0, or -1 with a line in torchadder_last_error()
 * that names the step and the value. */
TORCHADDER_API int torchadder_engine_check(const void *bytes, size_t size);

/* Loads a file. Returns NULL with a line in torchadder_last_error() if that fails. `threads` share the images of a
 * call; the images that remain, or a single one, are computed by all threads together. */
TORCHADDER_API torchadder_engine *torchadder_engine_load(const char *path, int threads);

/* The same from memory, which is not needed afterwards. `isa`: "reference", "avx2", "avx2max", "avx512", "avx512vnni",
 * "neon", "neondot", or NULL for the best that torchadder_selected_isa() allows. keep_values: every value has memory of
 * its own, for torchadder_engine_value(). */
TORCHADDER_API torchadder_engine *torchadder_engine_read(const void *bytes, size_t size, int threads, const char *isa,
                                                         int keep_values);

TORCHADDER_API void torchadder_engine_free(torchadder_engine *engine);

typedef struct {
  int64_t channels, height, width;  /* of an image */
  int64_t classes;                  /* logits an image */
  int64_t file_bytes, weight_bytes; /* weight_bytes: packed weights and tables */
  int64_t arena_bytes;              /* of all threads together */
  int threads, steps;
} torchadder_engine_about;

TORCHADDER_API torchadder_engine_about torchadder_engine_describe(const torchadder_engine *engine);

/* The kernel of step 0 .. steps - 1; NULL beyond. */
TORCHADDER_API const char *torchadder_engine_kernel(const torchadder_engine *engine, int step);

/* What the file keeps beside the program under `name`, numbers as text; NULL if there is nothing. `torchadder quantize`
 * keeps "mean" and "std", one number a channel with spaces between: images are (pixel / 255 - mean) / std.
 * torchadder/quant/file.py lists all names. */
TORCHADDER_API const char *torchadder_engine_note(const torchadder_engine *engine, const char *name);

/* Computes logits (count, classes) of images (count, C, H, W): float32 as the network takes them, or quantized values.
 * An infinite number becomes the nearest quantized value, NaN becomes quantized value 0.
 * `seconds`, if not NULL, is 1 + steps numbers: one thread's time in the input and in each step is added to them. */
TORCHADDER_API int torchadder_engine_run_f32(torchadder_engine *engine, const float *images, int64_t count,
                                             float *logits, double *seconds);
TORCHADDER_API int torchadder_engine_run_u8(torchadder_engine *engine, const uint8_t *images, int64_t count,
                                            float *logits, double *seconds);

/* Writes value `index` of the last run, quantized values (C, H, W), to q, and its shape to shape[3]: 0 is the input,
 * i + 1 the output of step i. Only for an engine that keeps its values, run with one image. q may be NULL. */
TORCHADDER_API int torchadder_engine_value(torchadder_engine *engine, int index, int64_t *shape, uint8_t *q);

#ifdef __cplusplus
}
#endif
#endif
