// Lets the shared library run on systems that are older than the compiler: on glibc 2.28 with the libstdc++ of GCC 8.
// Headers of GCC 12 use two symbols that these systems lack. Here they are defined for this library alone.
#include <new>

#if defined(__GLIBC__) && defined(__GLIBCXX__)

// From glibc 2.32: whether the process has a single thread. 0 makes shared_ptr count atomically.
extern "C" {
extern char __libc_single_threaded;
char __libc_single_threaded = 0;
}

// From GCC 11: called by std::allocator.
namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std

#endif
