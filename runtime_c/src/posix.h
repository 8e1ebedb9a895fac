/* posix.h: feature macros. Include first in every file that uses the operating system. */
#ifndef ELLM_POSIX_H
#define ELLM_POSIX_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif

#endif
