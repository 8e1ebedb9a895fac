/* Keys lie beside the program that is installed on a board, outside of what is deployed: a bundle cannot bring its own. */
#include "posix.h"

#include "trust.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"

enum { path_cap = sizeof((trust *)NULL)->pinned };

/* From ROOT/models/NAME/SLOT, where a bundle's own program lies on a board, to ROOT. */
static void leave_slot(char *folder) {
    char *at = strchr(folder, '\0');
    for (int n_parts = 0; at > folder; at--) {
        n_parts += *at == '/';
        if (n_parts == 3) {
            if (strncmp(at, "/models/", 8) == 0) {
                *at = '\0';
            }
            return;
        }
    }
}

/* `folder`/`name`, NULL if there is no such file. One that cannot be looked at is there: opening it tells why. */
static const char *existing(const char *folder, const char *name, char *path) {
    int n = snprintf(path, path_cap, "%s/%s", folder, name);
    return n >= path_cap || (access(path, F_OK) != 0 && errno == ENOENT) ? NULL : path;
}

void trust_in(const char *folder, trust *t) {
    static const char secret_name[] = "weights.key";
    const char *credentials = getenv("CREDENTIALS_DIRECTORY");
    *t = (trust){.secret = ""};
    t->files.pinned = existing(folder, "trusted_keys", t->pinned);
    if (credentials != NULL) {
        t->files.secret = existing(credentials, secret_name, t->secret);
    }
    if (t->files.secret == NULL) {
        t->files.secret = existing(folder, secret_name, t->secret);
    }
}

ellm_status trust_find(trust *t, ellm_error *error) {
    char folder[4096] = "";
    char *slash = readlink("/proc/self/exe", folder, sizeof folder - 1) > 0 ? strrchr(folder, '/') : NULL;
    if (slash == NULL) {
        return ellm_fail(error, ELLM_IO, "/proc/self/exe: %s", strerror(errno));
    }
    *slash = '\0';
    leave_slot(folder);
    trust_in(folder, t);
    return ELLM_OK;
}

void trust_note(const ellm_model_info *info) {
    if (info->locked_bytes < info->decrypted_bytes) {
        fprintf(stderr,
                "edgellm-rt: note: decrypted weights may get to swap; allow %llu MB of locked memory (ulimit -l, "
                "LimitMEMLOCK)\n",
                (unsigned long long)info->decrypted_bytes >> 20);
    }
}
