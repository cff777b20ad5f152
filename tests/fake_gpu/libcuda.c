/* A CUDA driver without a GPU: memory is the host's, a stream does its work at once.
 * FAKE_CUDA_DEVICES=0 makes cuInit fail as it does where there is no device. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
static int context_, stream_;

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
CUresult cuDevicePrimaryCtxRetain(void **context, int device) { *context = &context_; return 0; }
CUresult cuCtxSetCurrent(void *context) { return context == &context_ ? 0 : 201; }
CUresult cuMemAlloc_v2(uint64_t *address, size_t size) {
    if (getenv("FAKE_CUDA_FULL")) return 2;
    *address = (uint64_t)(uintptr_t)malloc(size);
    return 0;
}
CUresult cuMemAllocHost_v2(void **address, size_t size) { *address = malloc(size); return 0; }
CUresult cuStreamCreate(void **stream, unsigned flags) { *stream = &stream_; return 0; }
CUresult cuStreamSynchronize(void *stream) { return stream == (void *)&stream_ ? 0 : 400; }

CUresult cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    memcpy((void *)(uintptr_t)to, from, size);
    return 0;
}
CUresult cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    memcpy(to, (void *)(uintptr_t)from, size);
    return 0;
}
/* What the fake TensorRT calls to run on a "stream". */
CUresult fake_enqueue(void (*kernel)(void)) { kernel(); return 0; }
