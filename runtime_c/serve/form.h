/* form.h: what an answer must be, as a request says it, becomes a grammar. Those of the last requests are kept, together
 * with the masks that were made for them. */
#ifndef EDGELLM_RT_FORM_H
#define EDGELLM_RT_FORM_H

#include "request.h"

/* All members may be NULL. With a format and `may_call`, the answer is of that format or calls. */
typedef struct form {
    const char *param;                     /* the member that the format comes from, for errors */
    const ellm_json *schema;               /* a JSON schema */
    const ellm_json *grammar;              /* a grammar's text */
    bool is_object;                        /* any JSON object */
    const ellm_json *may_call, *must_call; /* arrays of tools */
    const ellm_json *called;               /* the name of the tool that must be called */
    bool several;                          /* more calls than one */
} form;

/* Has the generation give answers of this form. 400 names what is not supported, and where it stands. */
bool form_apply(parsing *p, const form *f, generation *g);
/* Frees what the service keeps. */
void form_forget(service *s);

#endif
