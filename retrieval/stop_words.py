"""Words that say too little to be searched for, by language; the names are those of Snowball's stemmers.

A language that is not listed has none: BM25 gives little weight to what stands everywhere anyway. They are written with
their accents; whoever compares them folds them as texts are folded.
"""

LANGUAGE = "english"
"""Of a store that does not say."""

_LISTS = {
    "english": (
        "a an and are as at be been but by can could did do does for from had has have how i if in into is it its me",
        "my no not of on or our shall should so such than that the their them then there these they this those to was",
        "we were what when where which who whom whose why will with would you your",
    ),
    "german": (
        "aber als am an auch auf aus bei bin bis bist da damit das dass dein dem den der des dich die dies diese",
        "diesem diesen dieser dieses dir doch du durch ein eine einem einen einer eines er es euch euer für hat habe",
        "haben hatte ich ihm ihn ihnen ihr ihre im in ist ja kann können man mein mich mir mit nach nicht noch nur ob",
        "oder ohne sein seine sich sie sind so über um und uns unser unter vom von vor wann war waren warum was",
        "welche welcher welches wenn wer werden wie wieso will wir wird wo woher wohin wurde wurden zu zum zur",
    ),
    "french": (
        "à a ai as au aux avec c ce ces cet cette comment d dans de des donc du elle elles en es est et étaient était",
        "être eu fait il ils j je l la le les leur leurs lui m ma mais me mes mon n ne nos notre nous on ont ou où",
        "par pas pour pourquoi qu quand que quel quelle quelles quels qui s sa sans se ses son sont sur t ta te tes",
        "ton tu un une vos votre vous y",
    ),
    "spanish": (
        "a al como con cuál cuáles cuándo cómo de del dónde e el él ella ellas ellos en era es esa ese eso esta está",
        "están este esto fue fueron ha han hay la las le les lo los me mi mis muy más ni no nos nosotros o para pero",
        "por porque que qué quién quiénes se ser si sí sin sobre son su sus también te tiene tu tus un una unas uno",
        "unos y ya yo",
    ),
    "italian": (
        "a ad ai al alla alle allo anche c che chi ci come con cosa cui da dal dalla dalle degli dei del della delle",
        "dello di dove e è ed era erano gli ha hanno i il in io l la le lei lo loro lui ma mi mia mio ne nei nel",
        "nella nelle no noi non o per perché più quale quali quando quanto quello questa questo se sei si sia sono su",
        "sua suo sul sulla ti tra tu un una uno vi voi",
    ),
    "dutch": (
        "aan al als bij dan dat de deze die dit door dus een en er geen had hebben heb heeft hem het hier hij hoe hun",
        "ik in is ja je kan met mijn na naar niet nog nu of om onder ons ook op over te tot u uit van veel voor waar",
        "waarom wanneer was wat we welk welke wie wij wil wordt worden zal ze zich zij zijn zo",
    ),
    "portuguese": (
        "a à ao aos as às com como da das de do dos e é ela elas ele eles em era essa esse esta está este eu foi",
        "foram há isso isto já lhe mais mas me meu minha muito na não nas nem no nos o onde os ou para pela pelo por",
        "porque qual quando que quem se sem ser seu seus só são sua suas também te tem um uma você",
    ),
}
STOP_WORDS = {language: frozenset(" ".join(lines).split()) for language, lines in _LISTS.items()}
