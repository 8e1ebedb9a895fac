/* gpu_note.h: why a bundle's GPU is not to be used here, in a file beside the bundle (FORMAT.md, .gpu). */
#ifndef EDGELLM_RT_GPU_NOTE_H
#define EDGELLM_RT_GPU_NOTE_H

#include <stdbool.h>
#include <stddef.h>

enum { gpu_note_cap = 512 };

/* Leaves the note; of a text of several lines only the first. A folder that cannot be written keeps none. */
void gpu_note_write(int directory, const char *manifest_sha256, const char *why);
void gpu_note_clear(int directory);
/* Whether there is a note about this manifest, and what it says, in printable characters. */
bool gpu_note_read(int directory, const char *manifest_sha256, char why[gpu_note_cap]);

#endif
