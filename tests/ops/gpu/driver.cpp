// A stand-in for the CUDA driver, libcuda.so.1, for tests without a GPU: it answers what cuda.core calls on the way to
// a launch, and runs there a kernel compiled for the CPU. All else is answered by "not supported", and named.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>

namespace {

using Kernel = void (*)(unsigned x, unsigned y, unsigned threads, bool backwards, void **arguments);

enum Result { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, NOT_SUPPORTED = 801 };
enum Attribute { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };

struct Config {
  unsigned grid[3], block[3], shared;
  void *stream, *attributes;
  unsigned attribute_count;
};

int the_context, the_library, the_kernel;  // their addresses are handles
thread_local void *current_context = nullptr;
Kernel to_run = nullptr;
void *last_stream = nullptr;

int init(unsigned) { return SUCCESS; }
int version(int *result) { return *result = 13000, SUCCESS; }
int device_count(int *result) { return *result = 1, SUCCESS; }
int device(int *result, int index) { return *result = index, index == 0 ? SUCCESS : INVALID_VALUE; }
int device_attribute(int *result, int attribute, int) {
  *result = attribute == CAPABILITY_MAJOR ? 9 : attribute == CAPABILITY_MINOR ? 0 : 1;
  return SUCCESS;
}
int retain_context(void **result, int) { return *result = &the_context, SUCCESS; }
int release_context(int) { return SUCCESS; }
int set_context(void *context) { return current_context = context, SUCCESS; }
int get_context(void **result) { return *result = current_context, SUCCESS; }
int device_of_context(int *result) { return *result = 0, current_context ? SUCCESS : INVALID_CONTEXT; }

int load_library(void **result, const void *code, void *, void *, unsigned, void *, void *, unsigned) {
  *result = &the_library;
  return std::memcmp(code, "\177ELF", 4) == 0 ? SUCCESS : INVALID_VALUE;
}
int unload_library(void *) { return SUCCESS; }
int kernel_of_library(void **result, void *library, const char *name) {
  *result = &the_kernel;
  return library == &the_library && std::strncmp(name, "torchadder_", 11) == 0 ? SUCCESS : INVALID_VALUE;
}

int launch(const Config *config, void *kernel, void **arguments, void **) {
  if (!current_context) return INVALID_CONTEXT;
  if (kernel != &the_kernel || !to_run || config->shared || config->grid[2] != 1) return INVALID_VALUE;
  if (config->block[1] != 1 || config->block[2] != 1) return INVALID_VALUE;
  last_stream = config->stream;
  to_run(config->grid[0], config->grid[1], config->block[0], false, arguments);
  return SUCCESS;
}

int error_text(int, const char **result) { return *result = "the stand-in refuses", SUCCESS; }

constexpr int MOST = 1024;
char unknown[MOST][64];
int unknown_count = 0;
template <int I>
int not_supported() {
  std::fprintf(stderr, "the stand-in for the driver has no %s\n", unknown[I]);
  return NOT_SUPPORTED;
}
template <int... I>
void *not_supported_at(int index, std::integer_sequence<int, I...>) {
  static void *const functions[] = {reinterpret_cast<void *>(not_supported<I>)...};
  return functions[index];
}

}  // namespace

extern "C" {

int cuGetProcAddress_v2(const char *name, void **result, int, std::uint64_t, int *status) {
  static const struct {
    const char *name;
    void *function;
  } known[] = {
#define KNOWN(name, function) {name, reinterpret_cast<void *>(function)}
      KNOWN("cuInit", init),
      KNOWN("cuDriverGetVersion", version),
      KNOWN("cuDeviceGetCount", device_count),
      KNOWN("cuDeviceGet", device),
      KNOWN("cuDeviceGetAttribute", device_attribute),
      KNOWN("cuDevicePrimaryCtxRetain", retain_context),
      KNOWN("cuDevicePrimaryCtxRelease", release_context),
      KNOWN("cuCtxSetCurrent", set_context),
      KNOWN("cuCtxGetCurrent", get_context),
      KNOWN("cuCtxGetDevice", device_of_context),
      KNOWN("cuLibraryLoadData", load_library),
      KNOWN("cuLibraryUnload", unload_library),
      KNOWN("cuLibraryGetKernel", kernel_of_library),
      KNOWN("cuLaunchKernelEx", launch),
      KNOWN("cuGetErrorName", error_text),
      KNOWN("cuGetErrorString", error_text),
      KNOWN("cuGetProcAddress", cuGetProcAddress_v2),
  };
  if (status) *status = 0;
  for (const auto &entry : known) {
    if (std::strcmp(entry.name, name) == 0) return *result = entry.function, SUCCESS;
  }
  if (unknown_count == MOST) return NOT_SUPPORTED;
  std::snprintf(unknown[unknown_count], sizeof unknown[0], "%s", name);
  *result = not_supported_at(unknown_count++, std::make_integer_sequence<int, MOST>{});
  return SUCCESS;
}

int cuGetProcAddress(const char *name, void **result, int version, std::uint64_t flags) {
  return cuGetProcAddress_v2(name, result, version, flags, nullptr);
}

// What the next launches run, and the stream of the last.
void stand_in_run(Kernel kernel) { to_run = kernel; }
void *stand_in_stream() { return last_stream; }
}
