/* A conversation that outlives the program: its text and what was computed of it, in one file. */
#include "posix.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chat.h"
#include "json.h"

enum { region_limit = 64 << 20 };

/* The folder that a file is to be in; its own parent must be there. */
static void make_folder(const char *path) {
    buffer folder = {0};
    const char *slash = strrchr(path, '/');
    if (slash != NULL && slash != path) {
        buffer_put(&folder, path, (size_t)(slash - path));
        (void)mkdir(folder.data, 0700); /* what fails shows when the file is written */
        buffer_free(&folder);
    }
}

static ellm_status take_up(chat *c, const ellm_saved *saved, const char *path, ellm_error *error) {
    engine *e = &c->engine;
    size_t n_note;
    const void *note = ellm_saved_note(saved, &n_note);
    ellm_region region;
    ellm_json *messages = NULL;
    ellm_region_init(&region, region_limit);
    ellm_status status = n_note > 0
                             ? ellm_json_read(note, n_note, &region, ELLM_SESSION_INVALID, path, &messages, error)
                             : ELLM_SESSION_INVALID;
    if (status != ELLM_OK || !conversation_read(&c->history, messages)) {
        status = ellm_fail(error, ELLM_SESSION_INVALID, "%.200s: it holds no conversation; remove it", path);
    }
    ellm_region_free(&region);
    if (status != ELLM_OK) {
        return status;
    }
    const int32_t *tokens;
    size_t n = ellm_saved_tokens(saved, &tokens);
    if (n == 0) {
        return c->notice(c, "another version of the model, or device, wrote this session: it is computed anew", error);
    }
    status = ellm_session_restore(e->context, 0, saved);
    if (status == ELLM_CONTEXT_FULL) {
        return c->notice(c, "this session is longer than the context now: it is computed anew", error);
    }
    if (status != ELLM_OK) {
        return ellm_fail(error, status, "%.200s: %s", path, ellm_status_text(status));
    }
    memcpy(e->held, tokens, n * sizeof *tokens);
    e->n_held = n;
    return ELLM_OK;
}

ellm_status session_begin(chat *c, ellm_error *error) {
    const char *path = c->settings->session;
    ellm_saved *saved;
    if (path == NULL || (access(path, F_OK) != 0 && errno == ENOENT)) {
        return ELLM_OK;
    }
    ellm_status status = ellm_saved_open(c->engine.model, path, &saved, error);
    if (status == ELLM_OK) {
        status = take_up(c, saved, path, error);
    }
    ellm_saved_close(saved);
    return status;
}

ellm_status session_end(chat *c, ellm_error *error) {
    const char *path = c->settings->session;
    const engine *e = &c->engine;
    if (path == NULL) {
        return ELLM_OK;
    }
    if (c->history.n_turns == 0 || e->n_held == 0) { /* forgotten */
        return unlink(path) == 0 || errno == ENOENT ? ELLM_OK
                                                    : ellm_fail(error, ELLM_IO, "%.200s: %s", path, strerror(errno));
    }
    buffer note = {0};
    conversation_write(&c->history, &note);
    make_folder(path);
    ellm_status status = ellm_session_save(e->context, 0, e->held, path, note.data, note.n, error);
    buffer_free(&note);
    return status;
}
