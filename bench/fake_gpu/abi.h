// What the fake GPU knows of CUDA 13's binary interface: the structs that cross it, and the numbers it must name. Taken from
// driver_types.h and cuda.h, so that a machine without CUDA's headers builds the library. `build.py` checks the version.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct Dim3 { unsigned x, y, z; unsigned long long all() const { return 1ull * x * y * z; } };

struct DeviceProp {
  char name[256]; char uuid[16]; char luid[8]; unsigned luidDeviceNodeMask;
  size_t totalGlobalMem, sharedMemPerBlock; int regsPerBlock, warpSize; size_t memPitch;
  int maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3]; size_t totalConstMem; int major, minor;
  size_t textureAlignment, texturePitchAlignment; int multiProcessorCount, integrated, canMapHostMemory, textures[39];
  size_t surfaceAlignment; int concurrentKernels, ECCEnabled, pciBusID, pciDeviceID, pciDomainID, tccDriver;
  int asyncEngineCount, unifiedAddressing, memoryBusWidth, l2CacheSize, persistingL2CacheMaxSize;
  int maxThreadsPerMultiProcessor, streamPrioritiesSupported, globalL1CacheSupported, localL1CacheSupported;
  size_t sharedMemPerMultiprocessor; int regsPerMultiprocessor, managedMemory, isMultiGpuBoard, multiGpuBoardGroupID;
  int hostNativeAtomicSupported, pageableMemoryAccess, concurrentManagedAccess, computePreemptionSupported;
  int canUseHostPointerForRegisteredMem, cooperativeLaunch; size_t sharedMemPerBlockOptin;
  int pageableMemoryAccessUsesHostPageTables, directManagedMemAccessFromHost, maxBlocksPerMultiProcessor;
  int accessPolicyMaxWindowSize; size_t reservedSharedMemPerBlock; int rest[76];
};
struct PointerAttributes { int type, device; void *devicePointer, *hostPointer; long reserved[8]; };
struct FuncAttributes {
  size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
  int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, cacheModeCA, maxDynamicSharedSizeBytes, rest[23];
};
struct RuntimeLaunch { Dim3 grid, block; size_t shared; void* stream; void* attributes; unsigned count; };
struct DriverLaunch { Dim3 grid, block; unsigned shared; void* stream; void* attributes; unsigned count; };

// cudaError_t and CUresult
enum { OK = 0, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, UNKNOWN = 999 };
enum { UNREGISTERED = 0, HOST = 1, DEVICE = 2 };  // cudaMemoryType
enum { POINTER_DEVICE_POINTER = 3, FUNC_MAX_THREADS = 0, FUNC_REGISTERS = 4 };  // CU_POINTER_ATTRIBUTE_, CU_FUNC_ATTRIBUTE_

static_assert(sizeof(DeviceProp) == 1008, "cudaDeviceProp of CUDA 13");
static_assert(sizeof(PointerAttributes) == 88, "cudaPointerAttributes of CUDA 13");
static_assert(sizeof(FuncAttributes) == 144, "cudaFuncAttributes of CUDA 13");
