<?php

namespace Infusionsoft;

/** Has the properties of the token of infusionsoft/php-sdk, under their names. */
class Token
{
    public $accessToken;
    public $refreshToken;
    public $endOfLife;
    public $extraInfo;
}
