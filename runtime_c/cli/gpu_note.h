/* gpu_note.h: why a bundle's GPU is not to be used here, or which one has proven itself, in files beside the bundle
 * (FORMAT.md, .gpu and .proven). A folder that cannot be written keeps none. */
#ifndef EDGELLM_RT_GPU_NOTE_H
#define EDGELLM_RT_GPU_NOTE_H

#include <stdbool.h>
#include <stddef.h>

enum { gpu_note_cap = 512 };

/* Leaves the note; of a text of several lines only the first. Whether it is there now. */
bool gpu_note_write(int directory, const char *manifest_sha256, const char *why);
void gpu_note_clear(int directory);
/* Whether there is a note about this manifest, and what it says, in printable characters. */
bool gpu_note_read(int directory, const char *manifest_sha256, char why[gpu_note_cap]);

/* The driver, as ellm_device_info has it, that a GPU has proven itself with. */
void gpu_proof_write(int directory, const char *manifest_sha256, const char *driver);
/* Whether another one than `driver` has: false where none has, or nobody noted which. */
bool gpu_proof_is_other(int directory, const char *manifest_sha256, const char *driver);

#endif
