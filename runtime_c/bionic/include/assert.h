#pragma once
#define assert(condition) ((void)0) /* programs for boards are built with NDEBUG */
