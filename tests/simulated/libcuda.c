/* A CUDA driver without a GPU. Device memory is host memory. Work on a stream is done at once; work captured into a graph
   is done when the graph is launched. It covers the part of the driver API that deploy/engine/gpu.py needs; names and
   argument lists are those of cuda.h, as the real cuda-bindings call them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int CUresult;
enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_FOUND = 500 };
typedef struct { void *to; const void *from; size_t size; } Copy;
typedef struct { Copy copies[16]; int count; } Graph;
typedef struct { int64_t ns; } Event;
static Graph *capturing;
static int live; /* count of allocations, streams, events and graphs not yet freed; read by the test */

int simulated_live(void) { return live; }
CUresult cuInit(unsigned flags) { return getenv("SIMULATED_NO_GPU") ? 100 : SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = atoi(getenv("SIMULATED_CUDA") ? getenv("SIMULATED_CUDA") : "13000"); return SUCCESS; }
CUresult cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? 101 : SUCCESS; }
CUresult cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Simulated Orin", size); return SUCCESS; }
CUresult cuDeviceTotalMem(size_t *bytes, int device) { *bytes = 8ull << 30; return SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
    const char *capability = getenv("SIMULATED_CAPABILITY") ? getenv("SIMULATED_CAPABILITY") : "8.7";
    *value = attribute == 75 ? capability[0] - '0' : attribute == 76 ? capability[2] - '0' : 0;
    return SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(void **context, int device) { *context = &live; return SUCCESS; }
CUresult cuDevicePrimaryCtxRelease(int device) { return SUCCESS; }
CUresult cuCtxSetCurrent(void *context) { return context == &live ? SUCCESS : INVALID_VALUE; }
CUresult cuStreamCreate(void **stream, unsigned flags) { live++; *stream = malloc(1); return SUCCESS; }
CUresult cuStreamDestroy(void *stream) { live--; free(stream); return SUCCESS; }
CUresult cuStreamSynchronize(void *stream) { return SUCCESS; }
CUresult cuMemAlloc(uint64_t *address, size_t size) { live++; *address = (uint64_t)(uintptr_t)malloc(size); return SUCCESS; }
CUresult cuMemFree(uint64_t address) { live--; free((void *)(uintptr_t)address); return SUCCESS; }
CUresult cuMemHostAlloc(void **address, size_t size, unsigned flags) { live++; *address = malloc(size); return SUCCESS; }
CUresult cuMemFreeHost(void *address) { live--; free(address); return SUCCESS; }
static CUresult copy(void *to, const void *from, size_t size) {
    if (!capturing) { memcpy(to, from, size); return SUCCESS; }
    if (capturing->count == 16) return INVALID_VALUE;
    capturing->copies[capturing->count++] = (Copy){to, from, size};
    return SUCCESS;
}
CUresult cuMemcpyHtoDAsync(uint64_t to, const void *from, size_t size, void *stream) { return copy((void *)(uintptr_t)to, from, size); }
CUresult cuMemcpyDtoHAsync(void *to, uint64_t from, size_t size, void *stream) { return copy(to, (const void *)(uintptr_t)from, size); }
CUresult cuStreamBeginCapture(void *stream, int mode) { capturing = calloc(1, sizeof(Graph)); live++; return SUCCESS; }
CUresult cuStreamEndCapture(void *stream, void **graph) { *graph = capturing; capturing = NULL; return SUCCESS; }
CUresult cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    live++; *executable = malloc(sizeof(Graph)); memcpy(*executable, graph, sizeof(Graph)); return SUCCESS;
}
CUresult cuGraphDestroy(void *graph) { live--; free(graph); return SUCCESS; }
CUresult cuGraphExecDestroy(void *executable) { live--; free(executable); return SUCCESS; }
CUresult cuGraphLaunch(void *executable, void *stream) {
    Graph *graph = executable;
    for (int i = 0; i < graph->count; i++) memcpy(graph->copies[i].to, graph->copies[i].from, graph->copies[i].size);
    return SUCCESS;
}
CUresult cuEventCreate(void **event, unsigned flags) { live++; *event = calloc(1, sizeof(Event)); return SUCCESS; }
CUresult cuEventDestroy(void *event) { live--; free(event); return SUCCESS; }
CUresult cuEventRecord(void *event, void *stream) {
    struct timespec now; clock_gettime(CLOCK_MONOTONIC, &now);
    ((Event *)event)->ns = now.tv_sec * 1000000000ll + now.tv_nsec;
    return SUCCESS;
}
CUresult cuEventElapsedTime(float *ms, void *start, void *end) {
    *ms = (((Event *)end)->ns - ((Event *)start)->ns) / 1e6f;
    return SUCCESS;
}
CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
    *function = dlsym(RTLD_DEFAULT, symbol);
    if (!*function) { Dl_info library; dladdr((void *)cuInit, &library); void *self = dlopen(library.dli_fname, RTLD_NOW | RTLD_NOLOAD); *function = dlsym(self, symbol); }
    if (status) *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
CUresult cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags) { return cuGetProcAddress_v2(symbol, function, version, flags, NULL); }
