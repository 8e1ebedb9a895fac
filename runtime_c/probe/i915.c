/* i915.c: plays the kernel's side of Intel's GPUs (i915), and runs nothing, so that Mesa's driver for them (ANV) compiles
 * kernels where there is no such GPU. It is preloaded; I915_GPU_ID is the PCI number of one of `chips`.
 *
 * What Debian's mesa-drm-shim does for other makers' GPUs: a submission is done once it was made, and has computed nothing.
 * The driver finds its device by libdrm's functions, which are here, too. The device is a file in memory, in which each
 * buffer has a place, so that opening and mapping it are the kernel's own. What is asked beyond that is refused, and said.
 *
 * Memory of the program's (userptr) is looked at as i915 does: that it is mapped, when a buffer is made of it; that it can
 * be written, only when the GPU is to use it. Not part of what is shipped.
 *
 *   zig cc -target x86_64-linux-gnu -shared -fPIC -O2 -std=c11 -D_GNU_SOURCE i915.c -o libi915.so
 */
#include <drm/drm.h>
#include <drm/i915_drm.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* subslices of its slice, as this kernel counts them, and execution units of each. */
struct chip {
    unsigned id, subslices, units;
    bool has_memory; /* of its own */
};

static const struct chip chips[] = {
    {0x3185, 3, 6, false},  /* Gemini Lake (J4125, N5000): 18; Gen9 */
    {0x9a49, 6, 16, false}, /* Tiger Lake: 96; Gen12 */
    {0x46d1, 2, 12, false}, /* Alder Lake-N (N100): 24; Gen12 */
    {0x7d55, 8, 16, false}, /* Meteor Lake: 128; Gen12.7 */
    {0x56a0, 32, 16, true}, /* Arc A770: 512, with matrix units; Gen12.5 */
};
static const struct chip *chip;

enum { alignment = 1 << 16, n_engines = 2, clock_hz = 19200000 };
static const uint64_t memory_bytes = (uint64_t)8 << 30;

/* A buffer: a part of the device's file, or memory of the program's. */
struct buffer {
    uint64_t offset, bytes, address;
    bool is_mine, is_checked;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t signalled;
static int device = -1;
static uint64_t end_of_file; /* of what buffers have; no place is given twice */
static struct buffer *buffers;
static bool *fences;
static uint32_t n_buffers, n_fences, n_ids;

static void fail(const char *what) {
    fprintf(stderr, "i915: %s\n", what);
    exit(1);
}

static int refused(const char *what) {
    fprintf(stderr, "i915: %s is refused\n", what);
    return EINVAL;
}

/* Room for one more element; a power of two of them is there at any time. */
static void *grown(void *list, uint32_t n, size_t size) {
    if ((n & (n - 1)) == 0) {
        list = realloc(list, (n == 0 ? 1 : 2 * (size_t)n) * size);
    }
    if (list == NULL) {
        fail("no memory");
    }
    return list;
}

/* ---- libdrm's list of devices (xf86drm.h) */

struct pci_bus {
    uint16_t domain;
    uint8_t bus, dev, function;
};
struct pci_device {
    uint16_t vendor, device, subvendor, subdevice;
    uint8_t revision;
};
struct drm_device {
    char **nodes;
    int available, bus_type; /* bits; 0 is PCI */
    struct pci_bus *bus;
    struct pci_device *about;
};
enum { render_node = 2, n_nodes = 3 };

static char path[64];
static char *nodes[n_nodes] = {path, path, path};
static struct pci_bus bus = {.dev = 2};
static struct pci_device about = {.vendor = 0x8086, .subvendor = 0x8086};
static struct drm_device found = {nodes, 1 << render_node, 0, &bus, &about};

static void start(void) {
    const char *asked = getenv("I915_GPU_ID");
    const unsigned long id = asked != NULL ? strtoul(asked, NULL, 16) : 0;
    for (size_t i = 0; i < sizeof chips / sizeof *chips; i++) {
        if (chips[i].id == id) {
            chip = &chips[i];
        }
    }
    if (chip == NULL) {
        fail("I915_GPU_ID is none that is known");
    }
    about.device = (uint16_t)chip->id;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&signalled, &monotonic);
    device = memfd_create("i915", MFD_CLOEXEC);
    if (device < 0 || ftruncate(device, (off_t)1 << 46) != 0) {
        fail("there is no file in memory");
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", device);
    buffers = grown(NULL, n_buffers++, sizeof *buffers); /* no handle is 0 */
    buffers[0] = (struct buffer){0};
    fences = grown(NULL, n_fences++, sizeof *fences);
    fences[0] = false;
}

static void started(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start);
}

int drmGetDevices2(uint32_t flags, struct drm_device *devices[], int n) {
    (void)flags;
    started();
    if (devices != NULL && n > 0) {
        devices[0] = &found;
    }
    return 1;
}

int drmGetDevice2(int fd, uint32_t flags, struct drm_device **one) {
    (void)fd;
    return drmGetDevices2(flags, one, 1) - 1;
}

void drmFreeDevice(struct drm_device **one) {
    *one = NULL;
}

void drmFreeDevices(struct drm_device *devices[], int n) {
    (void)devices, (void)n;
}

/* ---- what it is */

static int version(struct drm_version *v) {
    static const char name[] = "i915";
    if (v->name_len >= sizeof name - 1 && v->name != NULL) {
        memcpy(v->name, name, sizeof name - 1);
    }
    v->version_major = 1;
    v->version_minor = 6;
    v->name_len = sizeof name - 1;
    v->date_len = v->desc_len = 0;
    return 0;
}

static int parameter(const struct drm_i915_getparam *asked) {
    switch (asked->param) {
    case I915_PARAM_CHIPSET_ID: *asked->value = (int)chip->id; return 0;
    case I915_PARAM_CS_TIMESTAMP_FREQUENCY: *asked->value = clock_hz; return 0;
    case I915_PARAM_MMAP_VERSION:
    case I915_PARAM_MMAP_GTT_VERSION: *asked->value = 4; return 0; /* the last; with offsets */
    case I915_PARAM_PERF_REVISION: *asked->value = 7; return 0;
    case I915_PARAM_REVISION: *asked->value = chip->has_memory ? 8 : 0; return 0;
    case I915_PARAM_HAS_WAIT_TIMEOUT:
    case I915_PARAM_HAS_EXECBUF2:
    case I915_PARAM_HAS_EXEC_SOFTPIN:
    case I915_PARAM_HAS_EXEC_ASYNC:
    case I915_PARAM_HAS_EXEC_CAPTURE:
    case I915_PARAM_HAS_EXEC_FENCE_ARRAY:
    case I915_PARAM_HAS_EXEC_TIMELINE_FENCES:
    case I915_PARAM_HAS_CONTEXT_ISOLATION:
    case I915_PARAM_HAS_USERPTR_PROBE: *asked->value = 1; return 0;
    default: return EINVAL;
    }
}

static unsigned bytes_for(unsigned bits) {
    return (bits + 7) / 8;
}

static void set_bits(uint8_t *to, unsigned n) {
    for (unsigned i = 0; i < n; i++) {
        to[i / 8] |= (uint8_t)(1U << i % 8);
    }
}

/* The answer to a query, of at most `room` bytes, zeros until now; returns its length, 0 if there is none. */
static size_t answer(uint64_t query, unsigned char *to, size_t room) {
    struct drm_i915_query_topology_info topology = {.max_slices = 1,
                                                    .max_subslices = (uint16_t)chip->subslices,
                                                    .max_eus_per_subslice = (uint16_t)chip->units,
                                                    .subslice_offset = 1,
                                                    .subslice_stride = (uint16_t)bytes_for(chip->subslices),
                                                    .eu_offset = (uint16_t)(1 + bytes_for(chip->subslices)),
                                                    .eu_stride = (uint16_t)bytes_for(chip->units)};
    struct drm_i915_query_engine_info engines = {.num_engines = n_engines};
    struct drm_i915_query_memory_regions memories = {.num_regions = chip->has_memory ? 2 : 1};
    size_t n = 0;
    switch (query) {
    case DRM_I915_QUERY_TOPOLOGY_INFO:
    case DRM_I915_QUERY_GEOMETRY_SUBSLICES:
        n = sizeof topology + topology.eu_offset + (size_t)chip->subslices * topology.eu_stride;
        if (n <= room) {
            memcpy(to, &topology, sizeof topology);
            to[sizeof topology] = 1;
            set_bits(to + sizeof topology + topology.subslice_offset, chip->subslices);
            for (unsigned i = 0; i < chip->subslices; i++) {
                set_bits(to + sizeof topology + topology.eu_offset + i * topology.eu_stride, chip->units);
            }
        }
        return n;
    case DRM_I915_QUERY_ENGINE_INFO:
        n = sizeof engines + n_engines * sizeof(struct drm_i915_engine_info);
        if (n <= room) {
            memcpy(to, &engines, sizeof engines);
            struct drm_i915_engine_info *list = (void *)(to + sizeof engines);
            list[0].engine.engine_class = I915_ENGINE_CLASS_RENDER;
            list[1].engine.engine_class = I915_ENGINE_CLASS_COPY;
        }
        return n;
    case DRM_I915_QUERY_MEMORY_REGIONS:
        n = sizeof memories + memories.num_regions * sizeof(struct drm_i915_memory_region_info);
        if (n <= room) {
            memcpy(to, &memories, sizeof memories);
            struct drm_i915_memory_region_info *list = (void *)(to + sizeof memories);
            for (unsigned i = 0; i < memories.num_regions; i++) {
                list[i].region.memory_class = i == 0 ? I915_MEMORY_CLASS_SYSTEM : I915_MEMORY_CLASS_DEVICE;
                list[i].probed_size = list[i].unallocated_size = memory_bytes;
                list[i].probed_cpu_visible_size = list[i].unallocated_cpu_visible_size = i == 0 ? 0 : memory_bytes;
            }
        }
        return n;
    default: return 0; /* this GPU's table of itself (hwconfig) among them */
    }
}

static int query(const struct drm_i915_query *asked) {
    struct drm_i915_query_item *items = (void *)asked->items_ptr;
    for (uint32_t i = 0; i < asked->num_items; i++) {
        const size_t room = items[i].length > 0 ? (size_t)items[i].length : 0;
        const size_t n = answer(items[i].query_id, (void *)items[i].data_ptr, room);
        items[i].length = n == 0 || (room > 0 && n > room) ? -EINVAL : (int32_t)n;
    }
    return 0;
}

/* ---- buffers */

static int new_buffer(uint64_t bytes, uint32_t *handle) {
    if (bytes == 0) {
        return EINVAL;
    }
    buffers = grown(buffers, n_buffers, sizeof *buffers);
    buffers[n_buffers] = (struct buffer){.offset = end_of_file, .bytes = bytes};
    end_of_file += (bytes + alignment - 1) / alignment * alignment;
    *handle = n_buffers++;
    return 0;
}

static struct buffer *buffer_of(uint32_t handle) {
    return handle < n_buffers && buffers[handle].bytes > 0 ? &buffers[handle] : NULL;
}

static int close_buffer(uint32_t handle) {
    struct buffer *buffer = buffer_of(handle);
    if (buffer == NULL) {
        return EINVAL;
    }
    if (!buffer->is_mine) {
        fallocate(device, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)buffer->offset, (off_t)buffer->bytes);
    }
    buffer->bytes = 0;
    return 0;
}

static int place_of(struct drm_i915_gem_mmap_offset *asked) {
    const struct buffer *buffer = buffer_of(asked->handle);
    if (buffer == NULL || buffer->is_mine) {
        return buffer == NULL ? ENOENT : ENODEV;
    }
    asked->offset = buffer->offset;
    return 0;
}

/* Whether all of it is mapped, and can be written if that is asked. */
static bool is_mapped(uint64_t from, uint64_t to, bool writable) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512], may[8];
    unsigned long first, behind;
    while (from < to && maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        if (sscanf(line, "%lx-%lx %7s", &first, &behind, may) == 3 && first <= from && from < behind) {
            if (writable && may[1] != 'w') {
                break;
            }
            from = behind;
        }
    }
    if (maps != NULL) {
        fclose(maps);
    }
    return from >= to;
}

static int take_memory(struct drm_i915_gem_userptr *asked) {
    if (((asked->user_ptr | asked->user_size) & 4095) != 0) {
        return EINVAL;
    }
    if ((asked->flags & I915_USERPTR_PROBE) != 0
        && !is_mapped(asked->user_ptr, asked->user_ptr + asked->user_size, false)) {
        return EFAULT;
    }
    const int error = new_buffer(asked->user_size, &asked->handle);
    if (error == 0) {
        struct buffer *made = &buffers[asked->handle];
        made->address = asked->user_ptr;
        made->is_mine = true;
        made->is_checked = (asked->flags & I915_USERPTR_READ_ONLY) != 0;
    }
    return error;
}

/* Whether the GPU may use a buffer's pages: i915 wants to write all of them. */
static int check_pages(struct buffer *buffer) {
    if (buffer == NULL) {
        return ENOENT;
    }
    if (buffer->is_mine && !buffer->is_checked) {
        if (!is_mapped(buffer->address, buffer->address + buffer->bytes, true)) {
            return EFAULT;
        }
        buffer->is_checked = true;
    }
    return 0;
}

/* ---- syncobjs: each is reached or not. The driver insists on timelines, which the runtime does not use: they are refused */

static int new_fence(struct drm_syncobj_create *asked) {
    fences = grown(fences, n_fences, sizeof *fences);
    fences[n_fences] = (asked->flags & DRM_SYNCOBJ_CREATE_SIGNALED) != 0;
    asked->handle = n_fences++;
    return 0;
}

static int set_fence(uint32_t handle, bool reached) {
    if (handle == 0 || handle >= n_fences) {
        return ENOENT;
    }
    fences[handle] = reached;
    pthread_cond_broadcast(&signalled);
    return 0;
}

static int set_fences(const struct drm_syncobj_array *asked, bool reached) {
    const uint32_t *handles = (void *)asked->handles;
    int error = 0;
    for (uint32_t i = 0; i < asked->count_handles && error == 0; i++) {
        error = set_fence(handles[i], reached);
    }
    return error;
}

static int wait_for(struct drm_syncobj_wait *asked) {
    const uint32_t *handles = (void *)asked->handles, n = asked->count_handles;
    const struct timespec until = {.tv_sec = asked->timeout_nsec / 1000000000,
                                   .tv_nsec = asked->timeout_nsec % 1000000000};
    for (;;) {
        uint32_t n_done = 0;
        for (uint32_t i = n; i-- > 0;) {
            if (handles[i] < n_fences && fences[handles[i]]) {
                n_done++;
                asked->first_signaled = i;
            }
        }
        if (n_done == n || (n_done > 0 && (asked->flags & DRM_SYNCOBJ_WAIT_FLAGS_WAIT_ALL) == 0)) {
            return 0;
        }
        if (asked->timeout_nsec <= 0 || pthread_cond_timedwait(&signalled, &lock, &until) == ETIMEDOUT) {
            return ETIME;
        }
    }
}

/* ---- submissions */

static int run(const struct drm_i915_gem_execbuffer2 *batch) {
    const struct drm_i915_gem_exec_object2 *list = (void *)batch->buffers_ptr;
    if ((batch->flags & I915_EXEC_USE_EXTENSIONS) != 0) {
        return refused("a submission with a timeline");
    }
    for (uint32_t i = 0; i < batch->buffer_count; i++) {
        const int error = check_pages(buffer_of(list[i].handle));
        if (error != 0) {
            return error;
        }
    }
    const struct drm_i915_gem_exec_fence *list_of_fences = (void *)batch->cliprects_ptr;
    const uint32_t n = (batch->flags & I915_EXEC_FENCE_ARRAY) != 0 ? batch->num_cliprects : 0;
    for (uint32_t i = 0; i < n; i++) {
        if ((list_of_fences[i].flags & I915_EXEC_FENCE_SIGNAL) != 0) {
            set_fence(list_of_fences[i].handle, true);
        }
    }
    return 0;
}

static int context_parameter(struct drm_i915_gem_context_param *asked) {
    switch (asked->param) {
    case I915_CONTEXT_PARAM_GTT_SIZE: asked->value = (uint64_t)1 << 48; return 0;
    case I915_CONTEXT_PARAM_VM: asked->value = ++n_ids; return 0;
    default: return EINVAL;
    }
}

/* A counter that goes on is what a driver wants of any register that it may read. */
static int read_register(struct drm_i915_reg_read *asked) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const uint64_t ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    asked->val = ns / 1000 * (clock_hz / 100000) / 10;
    return 0;
}

/* Returns 0 or the number of an error. */
static int answered(unsigned long request, void *asked) {
    char what[32];
    switch (_IOC_NR(request)) {
    case _IOC_NR(DRM_IOCTL_VERSION): return version(asked);
    case _IOC_NR(DRM_IOCTL_GET_CAP): {
        struct drm_get_cap *cap = asked;
        cap->value = cap->capability == DRM_CAP_SYNCOBJ || cap->capability == DRM_CAP_SYNCOBJ_TIMELINE;
        return 0;
    }
    case _IOC_NR(DRM_IOCTL_GEM_CLOSE): return close_buffer(((struct drm_gem_close *)asked)->handle);
    case _IOC_NR(DRM_IOCTL_SYNCOBJ_CREATE): return new_fence(asked);
    case _IOC_NR(DRM_IOCTL_SYNCOBJ_DESTROY): return 0;
    case _IOC_NR(DRM_IOCTL_SYNCOBJ_SIGNAL): return set_fences(asked, true);
    case _IOC_NR(DRM_IOCTL_SYNCOBJ_RESET): return set_fences(asked, false);
    case _IOC_NR(DRM_IOCTL_SYNCOBJ_WAIT): return wait_for(asked);
    case _IOC_NR(DRM_IOCTL_I915_GETPARAM): return parameter(asked);
    case _IOC_NR(DRM_IOCTL_I915_QUERY): return query(asked);
    case _IOC_NR(DRM_IOCTL_I915_GEM_CREATE): /* with extensions, too, whose first members are alike */
    case _IOC_NR(DRM_IOCTL_I915_GEM_CREATE_EXT): {
        struct drm_i915_gem_create *create = asked;
        return new_buffer(create->size, &create->handle);
    }
    case _IOC_NR(DRM_IOCTL_I915_GEM_USERPTR): return take_memory(asked);
    case _IOC_NR(DRM_IOCTL_I915_GEM_MMAP_OFFSET): return place_of(asked);
    case _IOC_NR(DRM_IOCTL_I915_GEM_CONTEXT_CREATE_EXT):
        ((struct drm_i915_gem_context_create *)asked)->ctx_id = ++n_ids;
        return 0;
    case _IOC_NR(DRM_IOCTL_I915_GEM_VM_CREATE): ((struct drm_i915_gem_vm_control *)asked)->vm_id = ++n_ids; return 0;
    case _IOC_NR(DRM_IOCTL_I915_GEM_CONTEXT_GETPARAM): return context_parameter(asked);
    case _IOC_NR(DRM_IOCTL_I915_GEM_EXECBUFFER2_WR): return run(asked);
    case _IOC_NR(DRM_IOCTL_I915_REG_READ): return read_register(asked);
    case _IOC_NR(DRM_IOCTL_I915_GEM_GET_TILING):
        ((struct drm_i915_gem_get_tiling *)asked)->swizzle_mode = I915_BIT_6_SWIZZLE_NONE;
        return 0;
    case _IOC_NR(DRM_IOCTL_I915_GET_RESET_STATS): {
        struct drm_i915_reset_stats *stats = asked;
        stats->reset_count = stats->batch_active = stats->batch_pending = 0;
        return 0;
    }
    case _IOC_NR(DRM_IOCTL_I915_GEM_GET_APERTURE): {
        struct drm_i915_gem_get_aperture *aperture = asked;
        aperture->aper_size = aperture->aper_available_size = (uint64_t)1 << 48;
        return 0;
    }
    case _IOC_NR(DRM_IOCTL_PRIME_HANDLE_TO_FD): return EOPNOTSUPP; /* there is nobody to share a buffer with */
    case _IOC_NR(DRM_IOCTL_I915_GEM_SET_CACHING):
    case _IOC_NR(DRM_IOCTL_I915_GEM_CONTEXT_SETPARAM):
    case _IOC_NR(DRM_IOCTL_I915_GEM_CONTEXT_DESTROY):
    case _IOC_NR(DRM_IOCTL_I915_GEM_VM_DESTROY): return 0;
    default: snprintf(what, sizeof what, "request 0x%lx", request); return refused(what);
    }
}

int ioctl(int fd, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *asked = va_arg(rest, void *);
    va_end(rest);
    if (_IOC_TYPE(request) != DRM_IOCTL_BASE) {
        return (int)syscall(SYS_ioctl, fd, request, asked);
    }
    started();
    pthread_mutex_lock(&lock);
    const int error = answered(request, asked);
    pthread_mutex_unlock(&lock);
    errno = error;
    return error == 0 ? 0 : -1;
}
