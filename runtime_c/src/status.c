#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

/* Of each status in turn its name and its text, and its number. Strings side by side need no pointers. */
static const char words[] =
#define WORDS(name, number, text) #name "\0" text "\0"
    ELLM_STATUS_LIST(WORDS);
#undef WORDS
static const unsigned char numbers[] = {
#define NUMBER(name, number, text) number,
    ELLM_STATUS_LIST(NUMBER)
#undef NUMBER
};

/* The word of a status, 0 its name, 1 its text; NULL if there is no such status. */
static const char *word(ellm_status status, int which) {
    const char *at = words;
    for (size_t i = 0; i < sizeof numbers; i++) {
        const char *text = at + strlen(at) + 1;
        if (numbers[i] == (unsigned)status) {
            return which == 0 ? at : text;
        }
        at = text + strlen(text) + 1;
    }
    return NULL;
}

const char *ellm_status_text(ellm_status status) {
    const char *text = word(status, 1);
    return text != NULL ? text : "unknown status";
}

const char *ellm_status_name(ellm_status status) {
    const char *name = word(status, 0);
    return name != NULL ? name : "UNKNOWN";
}

ellm_status ellm_fail(ellm_error *error, ellm_status status, const char *format, ...) {
    if (error != NULL) {
        va_list arguments;
        va_start(arguments, format);
        if (vsnprintf(error->text, sizeof error->text, format, arguments) < 0) {
            error->text[0] = '\0';
        }
        va_end(arguments);
    }
    return status;
}
