/* manifest.h: manifest.json, checked and typed (FORMAT.md). */
#ifndef ELLM_MANIFEST_H
#define ELLM_MANIFEST_H

#include "edgellm.h"
#include "region.h"

enum { ELLM_FORMAT_VERSION = 1 };

typedef struct ellm_manifest_file {
    const char *path; /* relative, '/' between parts, neither "." nor ".." among them */
    uint64_t bytes;
    char sha256[65];
    bool is_weight; /* below weights/ */
} ellm_manifest_file;

typedef struct ellm_manifest {
    const char *name, *architecture, *scheme, *arch, *tier;
    int32_t vocab_size, context_length, sliding_window;
    uint64_t weight_bytes;
    bool has_cpu, has_gpu; /* kernels and packed weights for the processor, for a GPU, or for both */
    bool is_split;         /* a GPU has the first layers and the processor the others; has_gpu, and not has_cpu */
    double times_slower;   /* the board's GPU, where that is known; else 0 */
    const char **features; /* required, as in /proc/cpuinfo */
    size_t n_features;
    ellm_manifest_file *files;
    size_t n_files;
    int32_t *stop_ids;
    size_t n_stop_ids;
    const char *prefix_file, *prefix_system; /* state of a beginning that every conversation may have; NULL: none */
    ellm_sampler_options sampling;           /* recommended; greedy where generation says nothing */
} ellm_manifest;

/* Everything lives in `region`. BUNDLE_FORMAT, or BUNDLE_VERSION for a format this runtime does not read. */
ellm_status ellm_manifest_read(const char *text, size_t n_bytes, ellm_region *region, ellm_manifest *manifest,
                               ellm_error *error);

#endif
