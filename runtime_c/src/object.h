/* object.h: loads kernels.so, a shared object without imports, relocations or constructors (FORMAT.md). */
#ifndef ELLM_OBJECT_H
#define ELLM_OBJECT_H

#include "file.h"

typedef struct ellm_object {
    uint8_t *base;   /* where the segments lie: base + (virtual address - lowest) */
    uint64_t lowest; /* virtual address at base, a multiple of the page size */
    size_t bytes;    /* of the mapping */
    const struct ellm_object_layout *layout;
} ellm_object;

/* Checks `file` and maps its segments with their own protections, never writable and executable at once.
 * `file` must stay mapped, its descriptor only during this call. KERNEL_INVALID, or CPU_UNSUPPORTED if it is for
 * another architecture. */
ellm_status ellm_object_open(const ellm_file *file, const char *path, ellm_object *object, ellm_error *error);
/* The address of a function, with armv7's Thumb bit; NULL if the object has no such function. */
void *ellm_object_find(const ellm_object *object, const char *name);
/* Safe on an all-zero or closed object. */
void ellm_object_close(ellm_object *object);

#endif
