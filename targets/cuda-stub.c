/* A stub of libcuda.so.1: the driver of one Orin that executes no kernels. Memory is host memory, so copies work;
 * kernels are accepted and written to the folder CUDA_STUB_PTX. It exercises the whole CUDA runtime, including the real
 * run-time compiler, without a GPU. Results are zeros. CUDA_STUB_MEMORY sets the bytes of memory [default: 4 GiB],
 * CUDA_STUB_VERSION the CUDA version [default: 12060]. */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long Address;
enum { SUCCESS = 0, OUT_OF_MEMORY = 2 };

int cuInit(unsigned flags) { return SUCCESS; }
int cuDriverGetVersion(int *version) {
    const char *text = getenv("CUDA_STUB_VERSION");
    *version = text ? atoi(text) : 12060;
    return SUCCESS;
}
int cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
int cuDeviceGet(int *device, int index) { *device = index; return SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 8ull << 30; return SUCCESS; }
int cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, size, "Orin stub");
    return SUCCESS;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    /* Attribute numbers of cuda.h: capability, warp, shared memory, threads of a block, sizes of blocks and grids,
     * multiprocessors, integrated. */
    static const int values[][2] = {{75, 8}, {76, 7}, {10, 32}, {8, 48 << 10}, {97, 163 << 10}, {1, 1024}, {2, 1024},
        {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535}, {16, 8}, {18, 1}};
    *value = 1;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        if (values[i][0] == attribute) *value = values[i][1];
    return SUCCESS;
}

static int something;
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &something; return SUCCESS; }
int cuCtxSetCurrent(void *context) { return SUCCESS; }
int cuCtxGetCurrent(void **context) { *context = &something; return SUCCESS; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = malloc(1); return SUCCESS; }
int cuStreamSynchronize(void *stream) { return SUCCESS; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return SUCCESS; }
int cuEventCreate(void **event, unsigned flags) { *event = malloc(1); return SUCCESS; }
int cuEventRecord(void *event, void *stream) { return SUCCESS; }
int cuEventSynchronize(void *event) { return SUCCESS; }
int cuEventDestroy_v2(void *event) { free(event); return SUCCESS; }

static size_t used;
static size_t left(void) {
    const char *text = getenv("CUDA_STUB_MEMORY");
    size_t all = text ? strtoull(text, NULL, 10) : 4ull << 30;
    return all > used ? all - used : 0;
}
static void *zeros(size_t bytes) {
    size_t rounded = (bytes + 511) / 512 * 512;
    void *memory = aligned_alloc(512, rounded);
    if (memory) memset(memory, 0, rounded);
    return memory;
}
int cuMemAlloc_v2(Address *address, size_t bytes) {
    if (bytes > left()) return OUT_OF_MEMORY;
    void *memory = zeros(bytes);
    if (memory) used += malloc_usable_size(memory);
    *address = (Address)memory;
    return memory ? SUCCESS : OUT_OF_MEMORY;
}
int cuMemAllocAsync(Address *address, size_t bytes, void *stream) { return cuMemAlloc_v2(address, bytes); }
int cuMemFree_v2(Address address) {
    used -= malloc_usable_size((void *)address);
    free((void *)address);
    return SUCCESS;
}
int cuMemFreeAsync(Address address, void *stream) { return cuMemFree_v2(address); }
int cuMemAllocHost_v2(void **memory, size_t bytes) {
    *memory = zeros(bytes);
    return *memory ? SUCCESS : OUT_OF_MEMORY;
}
int cuMemFreeHost(void *memory) { free(memory); return SUCCESS; }
int cuMemGetInfo_v2(size_t *available, size_t *total) {
    *available = left();
    *total = 8ull << 30;
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) {
    memcpy((void *)to, from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) {
    memcpy(to, (void *)from, bytes);
    return SUCCESS;
}
struct side { size_t x, y; int kind; void *host; Address device; void *array; size_t pitch; };
struct copy { struct side from, to; size_t width, height; };
int cuMemcpy2DAsync_v2(const struct copy *copy, void *stream) {
    const struct side *from = &copy->from, *to = &copy->to;
    const char *source = from->kind == 1 ? from->host : (char *)from->device;
    char *target = to->kind == 1 ? to->host : (char *)to->device;
    for (size_t row = 0; row < copy->height; row++)
        memcpy(target + (to->y + row) * to->pitch + to->x, source + (from->y + row) * from->pitch + from->x,
               copy->width);
    return SUCCESS;
}

int cuModuleLoadData(void **module, const void *ptx) {
    static int count;
    const char *folder = getenv("CUDA_STUB_PTX");
    if (folder) {
        char name[4096];
        snprintf(name, sizeof name, "%s/%03d.ptx", folder, count++);
        FILE *file = fopen(name, "w");
        if (file) {
            fputs(ptx, file);
            fclose(file);
        }
    }
    *module = &something;
    return SUCCESS;
}
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = &something; return SUCCESS; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return SUCCESS; }
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) { return SUCCESS; }
int cuGetErrorName(int error, const char **text) { *text = "error"; return SUCCESS; }
int cuGetErrorString(int error, const char **text) { *text = "error"; return SUCCESS; }
