#include <stdarg.h>
#include <stdio.h>

#include "error.h"

const char *ellm_status_text(ellm_status status) {
    switch (status) {
#define CASE(name, number, text)                                                                                       \
    case ELLM_##name: return text;
        ELLM_STATUS_LIST(CASE)
#undef CASE
    }
    return "unknown status";
}

const char *ellm_status_name(ellm_status status) {
    switch (status) {
#define CASE(name, number, text)                                                                                       \
    case ELLM_##name: return #name;
        ELLM_STATUS_LIST(CASE)
#undef CASE
    }
    return "UNKNOWN";
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
