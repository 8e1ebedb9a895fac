/* shader.h: kernels.spv, checked: the SPIR-V modules of a bundle's GPU kernels (FORMAT.md). */
#ifndef ELLM_SHADER_H
#define ELLM_SHADER_H

#include "edgellm.h"
#include "region.h"

/* What a module asks of a device beyond the least; bits of ellm_shader.needs. */
enum {
    ELLM_NEEDS_16BIT = 1,                /* storage */
    ELLM_NEEDS_8BIT = 2,                 /* storage */
    ELLM_NEEDS_GROUP = 4,                /* subgroup built-ins */
    ELLM_NEEDS_SUMS = 8,                 /* subgroup arithmetic */
    ELLM_NEEDS_DOT = 16,                 /* integer dot products */
    ELLM_NEEDS_FLOOR = ELLM_NEEDS_GROUP, /* of every bundle */
    ELLM_NEEDS_MATRIX = 32, /* products of matrices: of subgroups of needs >> 16 & 255, and needs >> 24 rows */
};

typedef struct ellm_shader {
    const char *name;
    const uint32_t *code; /* in the mapped file */
    size_t n_bytes;
    uint32_t n_bindings; /* storage buffers: bindings 0 to n_bindings - 1 of set 0 */
    uint32_t local[3];   /* invocations of a workgroup */
    uint32_t needs;
} ellm_shader;

typedef struct ellm_shaders {
    ellm_shader *all; /* by name, ascending */
    uint32_t n;
} ellm_shaders;

/* Reads and checks kernels.spv; the table lives in `region`, code stays where it is and must outlive it.
 * KERNEL_INVALID with the place and reason. */
ellm_status ellm_shaders_read(const uint8_t *data, size_t n_bytes, ellm_region *region, ellm_shaders *shaders,
                              ellm_error *error);
/* The module of a kernel; NULL if there is none. */
const ellm_shader *ellm_shaders_find(const ellm_shaders *shaders, const char *name);

#endif
