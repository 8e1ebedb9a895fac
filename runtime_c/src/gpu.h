/* gpu.h: running a plan on a GPU, through Vulkan (../vulkan/). Without ELLM_VULKAN, opening one is a named error. */
#ifndef ELLM_GPU_H
#define ELLM_GPU_H

#include "plan.h"

typedef struct ellm_gpu ellm_gpu;

enum { ELLM_GPU_DRIVER = 64 }; /* room for what tells a device and the version of its driver from others */

/* What it takes from a context. Everything must outlive the GPU. */
typedef struct ellm_gpu_source {
    const ellm_plan *plan;         /* kernels are resolved to ellm_shader */
    const uint64_t *symbols;       /* by ellm_symbol */
    void *const *inputs;           /* by ellm_input: what the next function reads, written by the caller */
    bool real;                     /* no program that imitates one */
    int directory;                 /* where what the driver compiled is kept; -1: nowhere */
    const struct ellm_file *files; /* that weights may be mapped from; read where they are open */
    size_t n_files;
} ellm_gpu_source;

typedef struct ellm_gpu_info {
    char name[256]; /* of the device */
    char driver[ELLM_GPU_DRIVER];
    bool is_processor;                               /* it is a program that imitates a GPU */
    uint64_t weight_bytes, state_bytes, other_bytes; /* of its memory */
    uint64_t imported_bytes;                         /* of pages with weights that stay where the process has them */
    uint64_t uploaded_bytes;                         /* of weights that were copied */
    double upload_ms, pipelines_ms;
    double upload_copy_ms, upload_wait_ms; /* of upload_ms: copying, and of that waiting for the device */
    uint32_t n_dispatches, n_barriers;     /* of one token: body and head of one row */
} ellm_gpu_info;

/* Picks a device, copies the weights to it, and records every function. GPU_MISSING, GPU_LOST, NO_MEMORY. */
ellm_status ellm_gpu_open(const ellm_gpu_source *source, ellm_gpu **gpu, ellm_error *error);
void ellm_gpu_close(ellm_gpu *gpu);
/* The GPU that a plan would run on, and its driver, without opening it; NULL: any bundle. real: no program that imitates
 * one. GPU_MISSING says what is not. */
ellm_status ellm_gpu_find(const ellm_plan *plan, bool real, char driver[ELLM_GPU_DRIVER], ellm_error *error);
void ellm_gpu_get_info(const ellm_gpu *gpu, ellm_gpu_info *info);

/* Runs the body function with this index after whatever was asked for before, with the inputs as they are now. It need
 * not be done when this returns: `finish` or `head` see to that. */
ellm_status ellm_gpu_body(ellm_gpu *gpu, uint32_t index);
/* Runs a head function behind the body and waits. `logits`: its rows, valid until the next call. */
ellm_status ellm_gpu_head(ellm_gpu *gpu, uint32_t index, const uint8_t **logits);
/* Starts what is still to be started; what it does shows later. */
ellm_status ellm_gpu_finish(ellm_gpu *gpu);
/* Runs one function alone and notes how long each of its steps took. */
ellm_status ellm_gpu_timed(ellm_gpu *gpu, bool is_head, uint32_t index, int64_t *ns);
/* Runs one step of a function alone, in their order, and waits. Only with ELLM_VULKAN, like all below. */
ellm_status ellm_gpu_step(ellm_gpu *gpu, bool is_head, uint32_t index, uint32_t step);
/* What lies in a buffer that a step is bound to: `bytes` from `offset` on, valid until the next call. */
ellm_status ellm_gpu_look(ellm_gpu *gpu, const ellm_plan_argument *where, uint64_t offset, uint64_t bytes,
                          const uint8_t **data);
/* Writes there. data: NULL for zeros. */
ellm_status ellm_gpu_put(ellm_gpu *gpu, const ellm_plan_argument *where, uint64_t offset, uint64_t bytes,
                         const uint8_t *data);
/* Arena and states begin with zeros again. */
ellm_status ellm_gpu_clear(ellm_gpu *gpu);
/* Copies a block of every state that is in blocks, or, of ELLM_SYMBOL_SESSIONS, all that a session keeps besides. */
ellm_status ellm_gpu_copy(ellm_gpu *gpu, ellm_symbol what, int32_t from, int32_t to);
/* Some of a state's blocks, or of what sessions keep of it: those at n places, one after another in `data`. Writing them
 * waits for what was asked for before, and reading for all of it. */
ellm_status ellm_gpu_write(ellm_gpu *gpu, uint32_t state, const int32_t *places, size_t n, const uint8_t *data);
/* `n`: in, how many are wanted, at least one; out, how many of them there are now, valid until the next call. */
ellm_status ellm_gpu_read(ellm_gpu *gpu, uint32_t state, const int32_t *places, size_t *n, const uint8_t **data);

#ifdef ELLM_VULKAN
/* ---- how fast its memory is (../vulkan/reading.c) ---- */

enum { ELLM_GPU_WAYS = 6 };

/* 10^9 bytes a second: the median of the passes, the slowest one and the fastest; 0: not measured. */
typedef struct ellm_gpu_rate {
    double gb_s, low_gb_s, high_gb_s;
} ellm_gpu_rate;

/* How a buffer is read: by so many workgroups, whose threads have so many loads of 16 bytes under way. together: each
 * reads what lies together, otherwise the next one's part lies behind each load. */
typedef struct ellm_gpu_way {
    uint32_t loads, groups;
    bool together;
    ellm_gpu_rate rate;
} ellm_gpu_way;

typedef struct ellm_gpu_bandwidth {
    char name[256];    /* of the device */
    bool is_processor; /* it is a program that imitates a GPU */
    bool is_shared;    /* its memory is the processor's, too */
    bool has_clock;    /* times are the GPU's; otherwise until it was heard to be done */
    uint64_t bytes;    /* that a pass reads, or copies */
    uint32_t fastest;  /* of the ways */
    ellm_gpu_way ways[ELLM_GPU_WAYS];
    ellm_gpu_rate copy;  /* from memory that the processor writes, by the device */
    ellm_gpu_rate write; /* by one thread of the processor, straight to the device's memory */
} ellm_gpu_bandwidth;

/* Measures the GPU that a bundle would run on, in about a second. GPU_MISSING, GPU_LOST, NO_MEMORY; KERNEL_FAILED if it
 * did not read what was written. */
ellm_status ellm_gpu_measure(ellm_gpu_bandwidth *found, ellm_error *error);
#endif

#endif
