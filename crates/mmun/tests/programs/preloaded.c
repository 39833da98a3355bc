// A preloaded object of the user's own: gives `getlogin` a known answer.
char *getlogin(void);

char *getlogin(void)
{
    return "preloaded";
}
