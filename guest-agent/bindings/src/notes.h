#ifndef NOTES_H
#define NOTES_H

#include "flurry.h"

/* The last ticket of the shell that has started this program. */
void note(const char *ticket);
/* NULL when it has none. */
const char *noted(void);

#endif
