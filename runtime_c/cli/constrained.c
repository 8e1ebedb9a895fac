/* --json-schema and --grammar: what an answer must be. */
#include "posix.h"

#include "constrained.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { most_bytes = 1 << 20 };

static ellm_status read_file(const char *option, const char *path, buffer *text, ellm_error *error) {
    char piece[4096];
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return ellm_fail(error, ELLM_USAGE, "%s %.200s: %s", option, path, strerror(errno));
    }
    size_t n = sizeof piece;
    while (n == sizeof piece && text->n <= most_bytes) {
        n = fread(piece, 1, sizeof piece, file);
        buffer_put(text, piece, n);
    }
    bool good = ferror(file) == 0;
    fclose(file);
    return good ? ELLM_OK : ellm_fail(error, ELLM_IO, "%s %.200s: it cannot be read", option, path);
}

ellm_status constrained_open(constrained *c, const settings *s, const ellm_model *model, ellm_error *error) {
    *c = (constrained){0};
    bool is_schema = s->json_schema != NULL;
    const char *value = is_schema ? s->json_schema : s->grammar;
    const char *option = is_schema ? "--json-schema" : "--grammar";
    if (value == NULL) {
        return ELLM_OK;
    }
    if (is_schema && s->grammar != NULL) {
        return ellm_fail(error, ELLM_USAGE, "--json-schema and --grammar: one of them at a time");
    }
    buffer text = {0};
    ellm_error reason = {{0}};
    bool is_text = is_schema ? value[0] == '{' : strstr(value, "::=") != NULL;
    ellm_status status = ELLM_OK;
    if (is_text) {
        buffer_put(&text, value, strlen(value));
    } else {
        status = read_file(option, value, &text, error);
    }
    if (status == ELLM_OK) {
        const char *data = text.n > 0 ? text.data : "";
        status = is_schema ? ellm_grammar_open_schema(data, text.n, &c->grammar, &reason)
                           : ellm_grammar_open_text(data, text.n, &c->grammar, &reason);
        if (status != ELLM_OK) {
            ellm_fail(error, status, "%s: %.400s", option, reason.text);
        }
    }
    buffer_free(&text);
    if (status == ELLM_OK && ellm_vocabulary_open(model, &c->vocabulary) != ELLM_OK) {
        status = ellm_fail(error, ELLM_NO_MEMORY, "no memory for the vocabulary's order");
    }
    return status;
}

void constrained_close(constrained *c) {
    ellm_grammar_close(c->grammar);
    ellm_vocabulary_close(c->vocabulary);
    *c = (constrained){0};
}
