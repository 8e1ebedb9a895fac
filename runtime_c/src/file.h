/* file.h: files of a bundle, mapped read-only. */
#ifndef ELLM_FILE_H
#define ELLM_FILE_H

#include "edgellm.h"

typedef struct ellm_file {
    const uint8_t *data; /* page-aligned; NULL when empty or closed */
    size_t bytes;
    int descriptor; /* open for reading, -1 when closed */
} ellm_file;

/* What identifies the content of a file without reading it. */
typedef struct ellm_file_stamp {
    uint64_t inode, bytes, ctime_ns;
} ellm_file_stamp;

/* Opens the directory. BUNDLE_MISSING, with the remedy, if there is none. */
ellm_status ellm_directory_open(const char *path, int *directory, ellm_error *error);

/* Maps `path`, relative to `directory`. Only regular files. BUNDLE_MISSING if it does not exist. */
ellm_status ellm_file_map(int directory, const char *path, ellm_file *file, ellm_error *error);
/* Copies n bytes from the start of a mapped file whose descriptor is open. Pages that the page cache lacks are not left
 * there, where the system can do that: large pages of what follows could not include them. */
ellm_status ellm_file_peek(const ellm_file *file, const char *path, void *bytes, size_t n, ellm_error *error);
/* Closes the descriptor, the mapping stays. */
void ellm_file_release(ellm_file *file);
/* Safe on an all-zero or closed file. */
void ellm_file_close(ellm_file *file);
/* From now on closing leaves every mapping: somebody who does not answer may still read them. */
void ellm_file_keep_mapped(void);

/* Reads at most the first `cap` bytes of a file of keys. KEY_INVALID if its mode has a bit of `forbidden`. */
ellm_status ellm_key_file_read(const char *path, unsigned forbidden, void *bytes, size_t cap, size_t *n,
                               ellm_error *error);

ellm_status ellm_file_stamp_read(int directory, const char *path, ellm_file_stamp *stamp, ellm_error *error);

#endif
