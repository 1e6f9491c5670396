// A CUDA runtime (preloaded over libcudart) and driver (libcuda.so.1) without a GPU, in one library (`build.py`).
// It reports H200s. Device memory is host memory that nothing has touched yet, copies copy, kernels do nothing, a graph
// launch replays nothing. Every call that costs time on a GPU is recorded, in order.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "abi.h"

#define API extern "C" __attribute__((visibility("default")))
typedef unsigned long long u64;

namespace {
const u64 MEMORY = 150109880320ull;  // of one H200, bytes
const size_t UNTOUCHED = 256u << 20;  // device to device copies above it are not done: no step's values matter, RAM does
const int DEVICES = 8;

struct Block { size_t size; int kind, device; };
struct Record { const char* kind; std::string name; u64 amount; bool captured; };

std::mutex mutex;
std::map<uintptr_t, Block> blocks;
std::unordered_map<const void*, std::string> kernel_names;
std::vector<Record> records;
bool recording = false;
int capture = 0;  // number of the capture under way, 0 for none
u64 used[DEVICES];
thread_local int device = 0;

int setting(const char* name, int otherwise) { const char* said = getenv(name); return said ? atoi(said) : otherwise; }
int device_count() { int n = setting("FAKE_GPU_DEVICES", 1); return n < DEVICES ? n : DEVICES; }

void put(const char* kind, std::string name, u64 amount = 0) {
  if (!recording) return;
  std::lock_guard<std::mutex> guard(mutex);
  records.push_back({kind, std::move(name), amount, capture != 0});
}

int synchronised(const char* what) {
  put("sync", what);
  return capture ? CAPTURE_UNSUPPORTED : OK;
}

void* take(size_t size, int kind) {
  size = (size + 4095) & ~size_t(4095);
  if (!size) size = 4096;
  void* p = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  std::lock_guard<std::mutex> guard(mutex);
  blocks[(uintptr_t)p] = {size, kind, device};
  if (kind == DEVICE) used[device] += size;
  return p;
}

int give(void* p) {
  std::lock_guard<std::mutex> guard(mutex);
  auto found = blocks.find((uintptr_t)p);
  if (found == blocks.end()) return OK;
  if (found->second.kind == DEVICE) used[found->second.device] -= found->second.size;
  munmap(p, found->second.size);
  blocks.erase(found);
  return OK;
}

Block block_of(const void* p) {
  std::lock_guard<std::mutex> guard(mutex);
  auto found = blocks.upper_bound((uintptr_t)p);
  if (found == blocks.begin()) return {0, UNREGISTERED, -2};
  --found;
  return (uintptr_t)p < found->first + found->second.size ? found->second : Block{0, UNREGISTERED, -2};
}

const char* direction(const void* to, const void* from) {
  int a = block_of(from).kind, b = block_of(to).kind;
  if (a == DEVICE) return b == DEVICE ? "D2D" : b == HOST ? "D2H pinned" : "D2H pageable";
  return b != DEVICE ? "H2H" : a == HOST ? "H2D pinned" : "H2D pageable";
}

int copy(const char* kind, void* to, const void* from, size_t size) {
  const char* way = direction(to, from);
  put(kind, way, size);
  if (size <= UNTOUCHED || strcmp(way, "D2D")) memcpy(to, from, size);
  return OK;
}

int launched(const void* function, Dim3 grid) {
  if (!recording) return OK;
  std::unique_lock<std::mutex> guard(mutex);
  auto found = kernel_names.find(function);
  std::string name = found == kernel_names.end() ? "?" : found->second;
  guard.unlock();
  put("kernel", name, grid.all());
  return OK;
}

int attribute(int which) {  // cudaDeviceAttr and CUdevice_attribute have the same numbers
  switch (which) {
    case 1: return 1024;         // threads a block
    case 5: return 2147483647;   // grid x
    case 8: return 49152;        // shared memory a block
    case 10: return 32;          // threads a warp
    case 12: return 65536;       // registers a block
    case 13: return 1980000;     // clock, kHz
    case 16: return setting("FAKE_GPU_PROCESSORS", 132);
    case 36: return 3201000;     // memory clock, kHz
    case 37: return 6144;        // bits of the memory bus
    case 38: return 62914560;    // L2
    case 39: return 2048;        // threads an SM
    case 75: return 9;           // compute capability
    case 76: return 0;
    case 81: return 233472;      // shared memory an SM
    case 97: return 232448;      // shared memory a block may opt into
    case 106: return 32;         // blocks an SM
    default: return 1;
  }
}

void* driver_symbol(const char* name) {
  static void* self = dlopen("libcuda.so.1", RTLD_LAZY);
  return self ? dlsym(self, name) : nullptr;
}

int not_modelled(const char* name) {
  fprintf(stderr, "fake GPU: %s is not modelled (bench/fake_gpu/cuda.cpp)\n", name);
  return NOT_SUPPORTED;
}
}  // namespace

#define NOTHING(name) API int name() { return OK; }
#define NOT_MODELLED(name) API int name() { return not_modelled(#name); }

// ---- for bench.fake_gpu.device
API void fake_gpu_record(int on) {
  std::lock_guard<std::mutex> guard(mutex);
  recording = on;
  if (on) records.clear();
}
API void fake_gpu_mark(const char* what) { put("mark", what); }
API const char* fake_gpu_records() {  // a line each: kind, name, amount, whether captured, between tabs
  static std::string text;
  std::lock_guard<std::mutex> guard(mutex);
  text.clear();
  for (auto& row : records) text += std::string(row.kind) + "\t" + row.name + "\t" + std::to_string(row.amount) + "\t" + (row.captured ? "1" : "0") + "\n";
  return text.c_str();
}

// ---- kernels that nvcc compiled
struct Config { Dim3 grid, block; size_t shared; void* stream; };
static thread_local std::vector<Config> configs;
API void** __cudaRegisterFatBinary(void*) { static void* handle[8]; return handle; }
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
API char __cudaInitModule(void**) { return 1; }
API void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  std::lock_guard<std::mutex> guard(mutex);
  kernel_names[host] = name;
}
API unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) { configs.push_back({grid, block, shared, stream}); return 0; }
API int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void** stream) {
  if (configs.empty()) return UNKNOWN;
  Config& last = configs.back();
  *grid = last.grid, *block = last.block, *shared = last.shared, *stream = last.stream;
  configs.pop_back();
  return OK;
}
API int __cudaGetKernel(const void** kernel, const void* function) { *kernel = function; return OK; }
API int __cudaLaunchKernel(const void* f, Dim3 grid, Dim3, void**, size_t, void*) { return launched(f, grid); }
API int cudaLaunchKernel(const void* f, Dim3 grid, Dim3, void**, size_t, void*) { return launched(f, grid); }
API int cudaLaunchCooperativeKernel(const void* f, Dim3 grid, Dim3, void**, size_t, void*) { return launched(f, grid); }
API int cudaLaunchKernelExC(const RuntimeLaunch* c, const void* f, void**) { return launched(f, c->grid); }
API int cudaLaunchHostFunc(void*, void (*call)(void*), void* data) { call(data); return OK; }
API int cudaStreamAddCallback(void* stream, void (*call)(void*, int, void*), void* data, unsigned) { call(stream, OK, data); return OK; }
API int cudaFuncGetAttributes(FuncAttributes* a, const void*) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->ptxVersion = a->binaryVersion = 90, a->maxDynamicSharedSizeBytes = 49152;
  return OK;
}
NOTHING(cudaFuncSetAttribute)
API int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int threads, size_t) { *n = threads ? 2048 / threads : 1; return OK; }
API int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int threads, size_t, unsigned) { *n = threads ? 2048 / threads : 1; return OK; }

// ---- devices
API int cudaGetDeviceCount(int* n) { *n = device_count(); return OK; }
API int cudaGetDevice(int* d) { *d = device; return OK; }
API int cudaSetDevice(int d) { if (d < 0 || d >= device_count()) return INVALID_DEVICE; device = d; return OK; }
API int cudaDeviceGetAttribute(int* value, int which, int) { *value = attribute(which); return OK; }
API int cudaGetDeviceProperties(DeviceProp* p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA H200");
  for (int i = 0; i < 16; i++) p->uuid[i] = i + d;
  p->totalGlobalMem = MEMORY, p->major = attribute(75), p->minor = attribute(76), p->pciBusID = d + 1;
  p->sharedMemPerBlock = attribute(8), p->sharedMemPerBlockOptin = attribute(97), p->sharedMemPerMultiprocessor = attribute(81);
  p->regsPerBlock = p->regsPerMultiprocessor = attribute(12), p->warpSize = attribute(10), p->multiProcessorCount = attribute(16);
  p->maxThreadsPerBlock = attribute(1), p->maxThreadsPerMultiProcessor = attribute(39), p->maxBlocksPerMultiProcessor = attribute(106);
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = attribute(5), p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->l2CacheSize = attribute(38), p->memoryBusWidth = attribute(37), p->totalConstMem = 65536, p->textureAlignment = 512;
  p->reservedSharedMemPerBlock = 1024, p->persistingL2CacheMaxSize = 41943040;
  p->concurrentKernels = p->unifiedAddressing = p->managedMemory = p->cooperativeLaunch = 1, p->asyncEngineCount = 3;
  return OK;
}
API int cudaDeviceGetPCIBusId(char* text, int size, int d) { snprintf(text, size, "0000:%02x:00.0", d + 1); return OK; }
API int cudaDeviceGetStreamPriorityRange(int* least, int* greatest) { if (least) *least = 0; if (greatest) *greatest = -5; return OK; }
API int cudaDeviceSynchronize() { return synchronised("device"); }
API int cudaDeviceCanAccessPeer(int* can, int, int) { *can = 1; return OK; }
NOTHING(cudaDeviceEnablePeerAccess)
API int cudaDriverGetVersion(int* v) { *v = 13000; return OK; }
API int cudaRuntimeGetVersion(int* v) { *v = 13000; return OK; }
API const char* cudaGetErrorName(int e) { static thread_local char text[32]; snprintf(text, sizeof text, "fake GPU error %d", e); return text; }
API const char* cudaGetErrorString(int e) { return cudaGetErrorName(e); }
NOTHING(cudaGetLastError)
NOTHING(cudaPeekAtLastError)
NOTHING(cudaProfilerStart)
NOTHING(cudaProfilerStop)

// ---- memory
API int cudaMalloc(void** p, size_t n) {
  if (used[device] + n > MEMORY) return OUT_OF_MEMORY;
  put("malloc", "", n);
  *p = take(n, DEVICE);
  return *p ? OK : OUT_OF_MEMORY;
}
API int cudaMallocAsync(void** p, size_t n, void*) { return cudaMalloc(p, n); }
API int cudaFree(void* p) { put("free", ""); return give(p); }
API int cudaFreeAsync(void* p, void*) { return cudaFree(p); }
API int cudaHostAlloc(void** p, size_t n, unsigned) { put("host_alloc", "", n); *p = take(n, HOST); return *p ? OK : OUT_OF_MEMORY; }
API int cudaFreeHost(void* p) { return give(p); }
API int cudaHostRegister(void* p, size_t n, unsigned) { std::lock_guard<std::mutex> guard(mutex); blocks[(uintptr_t)p] = {n, HOST, device}; return OK; }
API int cudaHostUnregister(void* p) { std::lock_guard<std::mutex> guard(mutex); blocks.erase((uintptr_t)p); return OK; }
API int cudaMemGetInfo(size_t* free, size_t* total) { *free = MEMORY - used[device], *total = MEMORY; return OK; }
API int cudaPointerGetAttributes(PointerAttributes* a, const void* p) {
  Block block = block_of(p);
  memset(a, 0, sizeof *a);
  a->type = block.kind, a->device = block.device;
  if (block.kind != UNREGISTERED) a->devicePointer = (void*)p;
  if (block.kind == HOST) a->hostPointer = (void*)p;
  return OK;
}
API int cudaMemcpy(void* to, const void* from, size_t n, int) { return capture ? CAPTURE_UNSUPPORTED : copy("memcpy sync", to, from, n); }
API int cudaMemcpyAsync(void* to, const void* from, size_t n, int, void*) { return copy("memcpy", to, from, n); }
API int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t n, void*) { return copy("memcpy", to, from, n); }
API int cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height, int, void*) {
  put("memcpy", direction(to, from), width * height);
  for (size_t i = 0; i < height; i++) memcpy((char*)to + i * to_pitch, (const char*)from + i * from_pitch, width);
  return OK;
}
API int cudaMemset(void* p, int value, size_t n) { put("memset", "", n); if (value || n < UNTOUCHED) memset(p, value, n); return OK; }
API int cudaMemsetAsync(void* p, int value, size_t n, void*) { return cudaMemset(p, value, n); }
NOTHING(cudaMemcpyToSymbol)

// ---- streams, captures, events
static u64 last_stream = 0x1000;
API int cudaStreamCreateWithPriority(void** s, unsigned, int) { *s = (void*)(last_stream += 0x100); return OK; }
API int cudaStreamCreate(void** s) { return cudaStreamCreateWithPriority(s, 0, 0); }
API int cudaStreamCreateWithFlags(void** s, unsigned) { return cudaStreamCreateWithPriority(s, 0, 0); }
API int cudaStreamGetPriority(void*, int* p) { *p = 0; return OK; }
API int cudaStreamSynchronize(void*) { return synchronised("stream"); }
NOTHING(cudaStreamDestroy)
NOTHING(cudaStreamQuery)
NOTHING(cudaStreamWaitEvent)
API int cudaStreamIsCapturing(void*, int* status) { *status = capture != 0; return OK; }
API int cudaStreamGetCaptureInfo(void*, int* status, u64* id, void** graph, const void** nodes, const void** edges, size_t* n) {
  *status = capture != 0;
  if (id) *id = capture;
  if (graph) *graph = (void*)0x77;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (n) *n = 0;
  return OK;
}
API int cudaStreamBeginCapture(void*, int) { static int number = 0; put("capture", "begin"); capture = ++number; return OK; }
API int cudaStreamEndCapture(void*, void** graph) { put("capture", "end"); capture = 0; *graph = (void*)0x77; return OK; }
API int cudaGraphInstantiateWithFlags(void** exec, void*, u64) { *exec = (void*)0x78; return OK; }
API int cudaGraphLaunch(void*, void*) { put("graph", "launch"); return OK; }
API int cudaGraphGetNodes(void*, void*, size_t* n) { *n = 1; return OK; }
NOTHING(cudaGraphDestroy)
NOTHING(cudaGraphExecDestroy)
NOTHING(cudaGraphRetainUserObject)
NOTHING(cudaUserObjectCreate)
NOTHING(cudaUserObjectRelease)
NOTHING(cudaThreadExchangeStreamCaptureMode)
API int cudaEventCreateWithFlags(void** e, unsigned) { *e = new double(0); return OK; }
API int cudaEventCreate(void** e) { return cudaEventCreateWithFlags(e, 0); }
API int cudaEventDestroy(void* e) { delete (double*)e; return OK; }
API int cudaEventRecord(void* e, void*) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  *(double*)e = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
  return OK;
}
API int cudaEventRecordWithFlags(void* e, void* stream, unsigned) { return cudaEventRecord(e, stream); }
NOTHING(cudaEventQuery)
API int cudaEventSynchronize(void*) { return synchronised("event"); }
API int cudaEventElapsedTime(float* ms, void* from, void* to) { *ms = *(double*)to - *(double*)from; return OK; }

// ---- what torch links and no step of ours has called
NOT_MODELLED(cudaDeviceGetDefaultMemPool)
NOT_MODELLED(cudaDeviceGetGraphMemAttribute)
NOT_MODELLED(cudaDeviceSetGraphMemAttribute)
NOT_MODELLED(cudaGetSymbolAddress)
NOT_MODELLED(cudaGraphAddNode)
NOT_MODELLED(cudaGraphConditionalHandleCreate)
NOT_MODELLED(cudaGraphNodeGetDependencies)
NOT_MODELLED(cudaIpcCloseMemHandle)
NOT_MODELLED(cudaIpcGetEventHandle)
NOT_MODELLED(cudaIpcGetMemHandle)
NOT_MODELLED(cudaIpcOpenEventHandle)
NOT_MODELLED(cudaIpcOpenMemHandle)
NOT_MODELLED(cudaKernelSetAttributeForDevice)
NOT_MODELLED(cudaLibraryGetKernel)
NOT_MODELLED(cudaLibraryLoadData)
NOT_MODELLED(cudaLibraryUnload)
NOT_MODELLED(cudaMemPoolGetAttribute)
NOT_MODELLED(cudaMemPoolSetAccess)
NOT_MODELLED(cudaMemPoolSetAttribute)
NOT_MODELLED(cudaMemPoolTrimTo)
NOT_MODELLED(cudaStreamBeginCaptureToGraph)
NOT_MODELLED(cudaStreamUpdateCaptureDependencies)

// ---- the driver, as torch and Triton use it
NOTHING(fake_gpu_nothing)
API int cudaGetDriverEntryPointByVersion(const char* symbol, void** found, unsigned, u64, int* status) {
  *found = driver_symbol(symbol);
  if (!*found) *found = (void*)fake_gpu_nothing;
  if (status) *status = 0;
  return OK;
}
API int cuGetProcAddress_v2(const char* symbol, void** found, int, u64, int* status) {
  *found = driver_symbol(symbol);
  if (status) *status = !*found;  // CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND
  return *found ? OK : NOT_FOUND;
}
NOTHING(cuInit)
API int cuDeviceGetCount(int* n) { *n = device_count(); return OK; }
API int cuDeviceGet(int* d, int number) { *d = number; return OK; }
API int cuDeviceGetAttribute(int* value, int which, int) { *value = attribute(which); return OK; }
API int cuDeviceGetName(char* text, int size, int) { snprintf(text, size, "NVIDIA H200"); return OK; }
API int cuDriverGetVersion(int* v) { *v = 13000; return OK; }
API int cuCtxGetCurrent(void** context) { *context = (void*)0x55; return OK; }
API int cuCtxGetDevice(int* d) { *d = device; return OK; }
NOTHING(cuCtxSetCurrent)
API int cuDevicePrimaryCtxRetain(void** context, int) { *context = (void*)0x55; return OK; }
API int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { *flags = 0, *active = 1; return OK; }
API int cuGetErrorString(int, const char** text) { *text = "fake GPU"; return OK; }
API int cuGetErrorName(int, const char** text) { *text = "fake GPU"; return OK; }
API int cuModuleLoad(void** module, const char*) { *module = (void*)0x66; return OK; }
API int cuModuleLoadData(void** module, const void*) { *module = (void*)0x66; return OK; }
API int cuModuleLoadDataEx(void** module, const void*, unsigned, int*, void**) { *module = (void*)0x66; return OK; }
NOTHING(cuModuleUnload)
API int cuModuleGetFunction(const void** f, void*, const char* name) { *f = strdup(name); return OK; }
API int cuFuncGetAttribute(int* value, int which, const void*) { *value = which == FUNC_MAX_THREADS ? 1024 : which == FUNC_REGISTERS ? 32 : 0; return OK; }
NOTHING(cuFuncSetAttribute)
NOTHING(cuFuncSetCacheConfig)
API int cuPointerGetAttribute(void* value, int which, u64 p) {
  if (which != POINTER_DEVICE_POINTER) { *(int*)value = DEVICE; return OK; }
  *(u64*)value = p;
  return p == 0 || block_of((void*)p).kind != UNREGISTERED ? OK : 1;
}
API int cuLaunchKernelEx(const DriverLaunch* c, const void* f, void**, void**) { put("triton", (const char*)f, c->grid.all()); return OK; }
API int cuLaunchKernel(const void* f, unsigned x, unsigned y, unsigned z, unsigned, unsigned, unsigned, unsigned, void*, void**, void**) {
  put("triton", (const char*)f, Dim3{x, y, z}.all());
  return OK;
}
API int cuOccupancyMaxActiveClusters(int* n, const void*, const void*) { *n = 1; return OK; }
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int threads, size_t) { *n = threads ? 2048 / threads : 1; return OK; }
API int cuGetExportTable(const void** table, const void*) { *table = nullptr; return NOT_FOUND; }
NOTHING(cuTensorMapEncodeTiled)
NOTHING(cuTensorMapEncodeIm2col)
NOT_MODELLED(cuLaunchCooperativeKernel)
NOT_MODELLED(cuLinkAddData_v2)
NOT_MODELLED(cuLinkComplete)
NOT_MODELLED(cuLinkCreate_v2)
NOT_MODELLED(cuCtxGetLimit)
NOT_MODELLED(cuCtxSetLimit)
