// The engine's kernels on any CPU: the skeleton of the other instruction sets with a portable vector type.
//
// The specification that tests compare with is the program itself, in torch (torchadder/quant/steps.py), which shares
// no code with this file. Here the skeleton runs without intrinsics, so that the sanitizers and the fuzzer check its
// addresses on any machine.
#include "engine/vector_portable.h"

#define ISA reference
#define VECTOR Portable
#include "engine/instantiate.h"
