<?php

/** Has of Laravel what the document uses, and in its cache what two packages keep there. */
function config(string $key): string
{
    return [
        'infusionsoft.cache' => 'file',
        'infusionsoft.token_name' => 'infusionsoft.token',
    ][$key];
}

function cache(): CacheManager
{
    return new CacheManager();
}

class Cache
{
    public static function get(string $key): ?string
    {
        return cache()->store('default')->get($key);
    }
}

class CacheManager
{
    public function store(string $name): Store
    {
        return new Store([
            'default' => [
                'keap.access_token' => 'access-1-of-ab123',
                'keap.refresh_token' => 'refresh-1-of-ab123',
            ],
            'file' => [
                'infusionsoft.token.default' => serialize([
                    'access_token' => 'access-1-of-ab123',
                    'refresh_token' => 'refresh-1-of-ab123',
                    'expires_in' => 1769860800,
                    'token_type' => 'bearer',
                    'scope' => 'full|ab123.infusionsoft.com',
                ]),
            ],
        ][$name]);
    }
}

class Store
{
    public function __construct(private array $kept)
    {
    }

    public function get(string $key): ?string
    {
        return $this->kept[$key] ?? null;
    }
}
