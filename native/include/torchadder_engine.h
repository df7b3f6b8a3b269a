/* torchadder: runs a quantised network from a .tadder file, as a C interface.
 *
 *     torchadder_engine *engine = torchadder_engine_load("lenet.tadder", 1);
 *     if (!engine) fputs(torchadder_last_error(), stderr);
 *     torchadder_engine_run_f32(engine, images, 1, logits, NULL);
 *     torchadder_engine_free(engine);
 *
 * A file may come from a stranger: it is checked number by number before anything runs. An engine allocates all that it
 * needs when it is loaded. Calls of one engine from several threads take turns. Functions that return int return 0, or
 * -1 with a line in torchadder_last_error() (torchadder.h). The build of the file: torchadder/quant/file.py.
 */
#ifndef TORCHADDER_ENGINE_H
#define TORCHADDER_ENGINE_H

#include <stddef.h>

#include "torchadder.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct torchadder_engine torchadder_engine;

/* Checks a .tadder file that lies in memory: 0, or -1 with the step and the value that are wrong in
 * torchadder_last_error(). It prepares nothing to run. */
TORCHADDER_API int torchadder_engine_check(const void *bytes, size_t size);

/* Loads a file. NULL with a line in torchadder_last_error() where that fails. Images are shared among `threads`; what
 * is left over, or a single image, is computed by all of them together. */
TORCHADDER_API torchadder_engine *torchadder_engine_load(const char *path, int threads);

/* The same from memory, which is not needed afterwards. `isa`: "reference", "avx2", "avx2max", "avx512", "avx512vnni",
 * or NULL for the best that torchadder_selected_isa() allows. keep_values: the arena gives every value a place of its
 * own, for torchadder_engine_value(). */
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

/* The kernel that step 0 .. steps - 1 runs on; NULL beyond. */
TORCHADDER_API const char *torchadder_engine_kernel(const torchadder_engine *engine, int step);

/* What was kept beside the program under `name`, numbers as text; NULL where there is nothing. torchadder quantize
 * keeps "mean" and "std", one number a channel with spaces between: images are (pixel / 255 - mean) / std. All names:
 * torchadder/quant/file.py. */
TORCHADDER_API const char *torchadder_engine_note(const torchadder_engine *engine, const char *name);

/* logits (count, classes) of images (count, C, H, W): float32 as the network takes them, or codes. `seconds`, if not
 * NULL, has place for 1 + steps numbers: the time in the input and in each step is added to them (of one thread). */
TORCHADDER_API int torchadder_engine_run_f32(torchadder_engine *engine, const float *images, int64_t count,
                                             float *logits, double *seconds);
TORCHADDER_API int torchadder_engine_run_u8(torchadder_engine *engine, const uint8_t *images, int64_t count,
                                            float *logits, double *seconds);

/* Value `index` of the last image of the last run, codes (C, H, W): 0 is the input, i + 1 what step i made. Only of an
 * engine that keeps its values, run with one image. The shape goes to shape[3]; codes may be NULL. */
TORCHADDER_API int torchadder_engine_value(torchadder_engine *engine, int index, int64_t *shape, uint8_t *codes);

#ifdef __cplusplus
}
#endif
#endif
