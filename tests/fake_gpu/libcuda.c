/* A CUDA driver without a GPU: memory is the host's, a stream does its work at once, a graph is a list of what to do.
 * FAKE_CUDA_DEVICES=0 makes cuInit fail as it does where there is no device. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef struct { void *to; const void *from; size_t size; void (*kernel)(void); } Step;
static Step steps[16];
static int count, capturing;

static int devices(void) { const char *text = getenv("FAKE_CUDA_DEVICES"); return text ? atoi(text) : 1; }

CUresult cuInit(unsigned flags) { return devices() > 0 ? 0 : 100; }
CUresult cuGetErrorName(CUresult error, const char **name) {
    *name = error == 100 ? "CUDA_ERROR_NO_DEVICE" : error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_UNKNOWN";
    return 0;
}
CUresult cuDriverGetVersion(int *version) { *version = 12060; return 0; }
CUresult cuDeviceGetCount(int *number) { *number = devices(); return 0; }
CUresult cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
CUresult cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "Orin (fake)"); return 0; }
CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : 1;
    return 0;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)8 << 30; return 0; }
CUresult cuDevicePrimaryCtxRetain(void **context, int device) { *context = &count; return 0; }
CUresult cuCtxSetCurrent(void *context) { return context == &count ? 0 : 201; }
CUresult cuMemAlloc_v2(uint64_t *address, size_t size) {
    if (getenv("FAKE_CUDA_FULL")) return 2;
    *address = (uint64_t)(uintptr_t)malloc(size);
    return 0;
}
CUresult cuMemAllocHost_v2(void **address, size_t size) { *address = malloc(size); return 0; }
CUresult cuStreamCreate(void **stream, unsigned flags) { *stream = &steps; return 0; }
CUresult cuStreamSynchronize(void *stream) { return stream == (void *)&steps ? 0 : 400; }

static CUresult step(void *to, const void *from, size_t size, void (*kernel)(void)) {
    Step made = {to, from, size, kernel};
    if (capturing) { if (count == 16) return 900; steps[count++] = made; return 0; }
    if (kernel) kernel(); else memcpy(to, from, size);
    return 0;
}
CUresult cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    return step((void *)(uintptr_t)to, from, size, 0);
}
CUresult cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    return step(to, (void *)(uintptr_t)from, size, 0);
}
CUresult cuStreamBeginCapture_v2(void *stream, int mode) {
    if (getenv("FAKE_CUDA_NO_GRAPH")) return 900;
    count = 0; capturing = 1; return 0;
}
CUresult cuStreamEndCapture(void *stream, void **graph) {
    if (!capturing) return 901;
    capturing = 0; *graph = &count; return 0;
}
CUresult cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    *executable = graph; return 0;
}
CUresult cuGraphLaunch(void *executable, void *stream) {
    for (int i = 0; i < count; i++) if (steps[i].kernel) steps[i].kernel(); else memcpy(steps[i].to, steps[i].from, steps[i].size);
    return 0;
}
/* What the fake TensorRT calls to run on a "stream". */
CUresult fake_enqueue(void (*kernel)(void)) { return step(0, 0, 0, kernel); }
