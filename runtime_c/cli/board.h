/* board.h: what is deployed on this machine: a store of files by SHA-256, and slots of hard links into it.
 *
 * FORMAT.md, "On a board", has the layout. The program works in that folder (chdir), so every path here is relative
 * to it. Whoever changes something holds the lock. */
#ifndef EDGELLM_RT_BOARD_H
#define EDGELLM_RT_BOARD_H

#include <sys/stat.h>

#include "buffer.h"
#include "bundle.h"
#include "program.h"
#include "trust.h"

#define STORE     "store"
#define MODELS    "models"
#define INSTALLED "edgellm-rt"

enum { path_cap = 768, slot_digits = 16, name_cap = 64 };

/* ---- the host's side of the conversation (board.c) ---- */

/* At most n_bytes bytes of standard input as soon as there are any; 0 at its end. CANCELLED after a long silence. */
ellm_status board_read(void *data, size_t n_bytes, size_t *n_read, ellm_error *error);
/* One line of JSON to the host. Whether anybody hears it makes no difference to what is done. */
void board_say(const buffer *line);
/* {"progress":what,"done":,"total":}, at most twice a second, so that the host knows that the board lives. */
void board_progress(const char *what, uint64_t done, uint64_t total);

/* ---- files (board_files.c) ---- */

/* Formats a path; IO if it does not fit. */
ellm_status path_print(char path[path_cap], ellm_error *error, const char *format, ...) ELLM_PRINTF(3, 4);
/* IO with the path and what the system says. */
ellm_status path_failed(const char *path, const char *what, ellm_error *error);
ellm_status folder_make(const char *path, ellm_error *error);
/* fsync of a directory. */
ellm_status folder_sync(const char *path, ellm_error *error);
/* Removes a file or a folder with all that is in it; what is not there is removed already. Counts freed bytes. */
ellm_status tree_remove(const char *path, uint64_t *freed_bytes, ellm_error *error);
/* Calls `each` with the name of every entry but . and .. until it fails. No folder is an empty one. */
typedef ellm_status entry_run(const char *name, void *user, ellm_error *error);
ellm_status folder_each(const char *path, entry_run *each, void *user, ellm_error *error);
/* The name that a symbolic link holds; false if there is none, or it is no slot's. */
bool link_read(const char *path, char slot[slot_digits + 1]);
/* Points a symbolic link to a slot, in one step. */
ellm_status link_write(const char *folder, const char *name, const char *slot, ellm_error *error);
bool is_digits(const char *text, size_t n); /* n lower-case hexadecimal digits, and no more */
bool is_model(const char *name);

/* ---- the store (board_store.c) ---- */

/* Hard-links store/<sha256> to `path`, replacing what is there; copies where the file system has no hard links, and
 * adds the copied bytes. */
ellm_status store_link(const char *sha256, const char *path, uint64_t *copied_bytes, ellm_error *error);
/* Whether the store has the file, with that size. */
bool store_has(const char *sha256, uint64_t n_bytes);
/* Whether two files on this file system can share their content. Tries it. */
bool store_can_link(void);
/* Removes what no slot in use, and not the previous one, refers to. */
ellm_status store_collect(uint64_t *freed_bytes, size_t *n_removed, ellm_error *error);
ellm_status board_receive(int n, char **words, ellm_error *error);
ellm_status board_blocks(int n, char **words, ellm_error *error);
ellm_status board_gc(int n, char **words, ellm_error *error);

/* ---- slots (board_slot.c, board_survey.c) ---- */

ellm_status board_promote(int n, char **words, ellm_error *error);
ellm_status board_rollback(int n, char **words, ellm_error *error);
ellm_status board_undeploy(int n, char **words, ellm_error *error);
ellm_status board_survey(int n, char **words, ellm_error *error);

/* ---- beside a manifest (board_trust.c) ---- */

/* Under which SHA-256 the store has a file of the manifest, and with how many bytes. `map`: manifest.enc, if it is
 * there; `sha256`: room for an answer. */
const char *stored_sha256(const ellm_file *map, const ellm_manifest_file *file, uint64_t *bytes, char sha256[65]);
/* Whether one of the words manifest.NAME=SHA256 is about `name`. */
bool beside_has(const char *name, int n, char **words);
/* Whether manifest.sig and manifest.enc of a slot are what the words want; without a word, a signature may stay. */
bool beside_is_same(int slot, int n, char **words);
/* Whether a file of the store is a signature, by a pinned key, of a manifest in the store. */
ellm_status signature_prove(const char *manifest_sha256, const char *sha256, const char *pinned, ellm_error *error);

/* ---- stamps (board_stamps.c) ---- */

/* Linking and unlinking change a file's ctime, to which the stamps of verified weights are bound. Between these two
 * calls files may be linked and unlinked, nothing else: the second one renews the stamps that were valid before, of
 * files whose inode, size and mtime have not changed. */
typedef struct stamps stamps;
ellm_status stamps_remember(stamps **held, ellm_error *error);
void stamps_renew(stamps *held); /* frees it; NULL does nothing */

/* ---- proof (board_proof.c) ---- */

typedef struct proof {
    bool golden, measured;
    int64_t n_prompts, n_tokens;
    uint64_t peak_rss_bytes, most_rss_bytes;
    double decode_tok_s, least_decode_tok_s, prefill_tok_s, least_prefill_tok_s; /* least: 0 if the card has none */
    char throttled[160];                                                         /* why the processor is slowed now */
    char gpu[2048], gpu_error[512]; /* what it proved, a JSON object, or why the processor computes; else empty */
} proof;

/* Runs the slot's own program on its golden prompts, on each device, and measures where the manifest has a card. Where the
 * processor can do without the GPU, gpu_error says why it has to. KERNEL_FAILED and the like as the program says; BOARD_REFUSED, with the numbers, if it is too slow or too large. */
ellm_status proof_take(const char *slot_path, const ellm_bundle *bundle, proof *p, ellm_error *error);
void proof_print(const proof *p, buffer *json); /* "golden":{…},… without braces around them */
/* What slows the processor now, from the sysfs at `sys`; empty if nothing does, or nobody knows. */
void throttle_read(const char *sys, char *text, size_t cap);

/* ---- the record (board_log.c) ---- */

/* Appends a line to the log. A log that cannot be written stops nothing. */
void log_write(const char *what, const char *model, const char *slot, ellm_status status, const char *text);
ellm_status board_log(int n, char **words, ellm_error *error);

/* Who is changing something, as it told us. */
extern const char *board_who;

#endif
