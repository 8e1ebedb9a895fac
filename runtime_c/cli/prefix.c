/* prefix: what every conversation begins with, computed once: system prompt and tools, as the chat template writes them.
 * `edgellm compile --system-prompt` puts the file into a bundle; the arithmetic is the same on all boards. */
#include "posix.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "conversation.h"
#include "state.h"

/* Questions that begin as differently as can be: what the prompts have in common does not depend on the question. */
static const char *const questions[] = {"Hello! What can you do?", "a", "Zq", "7", "\n", " x", "(", "\xc3\xa9", "\""};
enum { n_questions = sizeof questions / sizeof *questions };

/* {"tools": what the file says} */
static ellm_status read_tools(const char *path, buffer *extra, ellm_error *error) {
    ellm_file file = {.descriptor = -1};
    ellm_status status = ellm_file_map(AT_FDCWD, path, &file, error);
    if (status == ELLM_OK) {
        buffer_print(extra, "{\"tools\":");
        buffer_put(extra, (const char *)file.data, file.bytes);
        buffer_put(extra, "}", 1);
    }
    ellm_file_close(&file);
    return status;
}

static ellm_status prompt_for(const settings *s, engine *e, const char *extra, const char *question, int32_t **ids,
                              size_t *n, ellm_error *error) {
    conversation c = {.extra = extra};
    size_t n_dropped;
    if (s->system != NULL) {
        conversation_system(&c, s->system, strlen(s->system));
    }
    conversation_ask(&c, question, strlen(question));
    ellm_status status = conversation_prompt(&c, e, 0, ids, n, &n_dropped, error);
    conversation_free(&c);
    return status;
}

/* The prompt of the first question, and how much of it the others' have, too. */
static ellm_status find_prefix(const settings *s, engine *e, const char *extra, int32_t **ids, size_t *n,
                               size_t *n_common, ellm_error *error) {
    ellm_status status = prompt_for(s, e, extra, questions[0], ids, n, error);
    *n_common = *n;
    for (int i = 1; i < n_questions && status == ELLM_OK; i++) {
        int32_t *other;
        size_t n_other, same = 0;
        status = prompt_for(s, e, extra, questions[i], &other, &n_other, error);
        while (status == ELLM_OK && same < *n_common && same < n_other && other[same] == (*ids)[same]) {
            same++;
        }
        *n_common = same;
        free(other);
    }
    if (status == ELLM_OK && *n_common == 0) {
        status = ellm_fail(error, ELLM_USAGE, "prompts have no beginning in common: there is nothing to compute");
    }
    return status;
}

ellm_status prefix_main(const settings *s, ellm_error *error) {
    engine e;
    buffer extra = {0}, json = {0};
    int32_t *ids = NULL;
    size_t n = 0, n_common = 0, n_reused;
    if (s->output == NULL) {
        return ellm_fail(error, ELLM_USAGE, "where to? --output FILE");
    }
    interrupts_catch();
    ellm_status status = engine_open(&e, s, ELLM_LOOKUP_OFF, error);
    if (status == ELLM_OK && s->tools != NULL) {
        status = read_tools(s->tools, &extra, error);
    }
    status = status != ELLM_OK ? status : find_prefix(s, &e, extra.data, &ids, &n, &n_common, error);
    status = status != ELLM_OK ? status : engine_prefill(&e, ids, n_common, NULL, NULL, &n_reused, error);
    if (status == ELLM_OK) { /* without a bundle's name: it goes into another one, whichever machine computed it */
        status = ellm_state_write(s->output, ellm_context_kv(e.context), 0, ids, NULL, NULL, 0, error);
    }
    if (status == ELLM_OK) {
        buffer_print(&json, "{\"tokens\":%zu,\"ids\":", n_common);
        buffer_put_ids(&json, ids, n);
        buffer_put(&json, "}\n", 2);
        status = output_write(json.data, json.n, error);
    }
    free(ids);
    buffer_free(&json);
    buffer_free(&extra);
    engine_close(&e);
    return status;
}
